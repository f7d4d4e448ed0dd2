"""Verifying, comparing and explaining dataset versions."""
