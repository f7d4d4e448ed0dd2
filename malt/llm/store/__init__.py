"""Every completion by key, in one SQL table."""
