"""Prefect servers and the commands `malt up`, `malt doctor` and `malt serve`."""
