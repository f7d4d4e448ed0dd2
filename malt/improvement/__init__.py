"""Improvement: rounds of growing, training and evaluating. What it has come to is read from the versions on disk."""
