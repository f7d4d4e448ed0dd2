"""Folders of versions, and reading what they hold."""
