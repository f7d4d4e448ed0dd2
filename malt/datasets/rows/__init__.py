"""Trees become SFT, preference and unpaired rows."""
