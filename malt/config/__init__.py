"""What a dataset is (hashed), and where it runs (never hashed)."""
