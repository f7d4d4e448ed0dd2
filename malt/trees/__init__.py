"""From a question to valued nodes: growth, grading, credit."""
