"""Pushing versions to the Hugging Face Hub, to cloud storage or to a folder."""
