"""Training rows made from trees: SFT, preference and unpaired."""
