"""Prefect's server, `malt up` and `malt doctor`."""
