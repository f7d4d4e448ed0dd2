"""Counts and figures of what a version holds."""
