"""From a config to a dataset version, whichever door it came through."""
