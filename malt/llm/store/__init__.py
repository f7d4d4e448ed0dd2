"""The store: every completion by key in one SQL table, and the open batches beside it."""
