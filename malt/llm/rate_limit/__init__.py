"""Rate limiting, retries and the circuit breaker: one limiter per endpoint."""
