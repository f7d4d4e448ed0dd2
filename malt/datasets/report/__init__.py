"""The report of a version: its figures, a sample of its trees to look at, and the page that shows both."""
