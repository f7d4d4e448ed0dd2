"""The `malt` command: a module a group of commands."""
