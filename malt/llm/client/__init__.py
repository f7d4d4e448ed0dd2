"""What a run asks with: the session, completers over it, and the lock that keeps two runs apart."""
