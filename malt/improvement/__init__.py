"""Improvement: rounds of growing, training and evaluating. Its only state is the versions on disk."""
