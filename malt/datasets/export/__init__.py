"""A version in other trainers' formats."""
