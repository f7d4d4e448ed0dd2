"""Reading mathematics from text, and comparing two readings."""
