"""From valued trees to a dataset version: rows, files, manifest."""
