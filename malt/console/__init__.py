"""How things look on a terminal: a module for each group of commands, on top of terminal.py."""
