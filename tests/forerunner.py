"""What the processes of crashing.py begin with: imported once, in the process from which all of them are forked."""

import pandas  # noqa: F401

import tests.batching
import tests.published  # noqa: F401
from malt.llm.provider.routing import import_litellm

import_litellm()
