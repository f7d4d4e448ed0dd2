"""Shards become an immutable version; versions are tagged and removed."""
