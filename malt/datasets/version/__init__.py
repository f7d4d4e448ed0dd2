"""A published version is read."""
