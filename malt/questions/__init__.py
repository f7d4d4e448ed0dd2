"""Question files read, screened and split."""
