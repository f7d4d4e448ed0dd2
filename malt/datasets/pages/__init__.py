"""Dataset card and report of a version."""
