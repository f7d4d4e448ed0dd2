"""The dataset card and the report."""
