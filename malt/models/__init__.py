"""Model versions: trained roles as immutable folders, known by the digest of their weights."""
