"""A run's session, the completers that use it, and the lock that keeps two runs apart."""
