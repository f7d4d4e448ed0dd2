"""Reading, screening and splitting of question files."""
