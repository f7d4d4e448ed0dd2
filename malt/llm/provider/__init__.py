"""LiteLLM and the embedded model; their errors become ours."""
