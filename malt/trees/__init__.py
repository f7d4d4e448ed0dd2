"""Trees of model answers: growth, grading, and credit for every node."""
