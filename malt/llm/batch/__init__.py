"""Requests through providers' batch APIs: submission, polling and results."""
