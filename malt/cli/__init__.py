"""The `malt` command: one module per group of commands."""
