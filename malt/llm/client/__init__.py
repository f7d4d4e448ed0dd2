"""A run's session, the completers over it, and the lock that keeps two runs apart."""
