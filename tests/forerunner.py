"""Imports for the processes of crashing.py, done once in the fork server that all of them are forked from."""

import pandas  # noqa: F401

import tests.batching
import tests.published  # noqa: F401
from malt.llm.provider.routing import import_litellm

import_litellm()
