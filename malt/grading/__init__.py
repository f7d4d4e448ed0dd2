"""Grading of answers: right, wrong or unknown."""
