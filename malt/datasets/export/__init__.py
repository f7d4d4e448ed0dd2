"""Export of versions to other trainers' formats."""
