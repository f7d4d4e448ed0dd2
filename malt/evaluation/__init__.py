"""Evaluation: systems compared on held-out questions, paired by question, kept as versions of their own."""
