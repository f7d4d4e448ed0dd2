"""Asking a model, once and for all: requests and their keys, the store, limits, and the provider."""
