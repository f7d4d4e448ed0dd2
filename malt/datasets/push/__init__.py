"""A version put where others read it."""
