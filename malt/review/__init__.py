"""Grading files, and auditing versions."""
