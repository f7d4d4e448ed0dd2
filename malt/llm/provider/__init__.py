"""Providers: LiteLLM, OpenAI-compatible HTTP, the embedded model, and the translation of their errors."""
