"""Prefect tasks: each is one call into `malt`, plus a name, a state, a log line or an artifact."""
