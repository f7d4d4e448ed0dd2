"""Grading of answer files, and audits of dataset versions."""
