"""Mathematics: its tokens, what they are read as, and whether two readings are the same."""
