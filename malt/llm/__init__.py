"""Requests to models: their keys, the store of answers, rate limits, budgets, and the providers."""
