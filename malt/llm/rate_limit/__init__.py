"""One limiter an endpoint."""
