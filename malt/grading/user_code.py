"""User-written graders: finding their code without importing it, demanding trust before it runs, and calling it."""

import logging
import math
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from malt.canonical_json import file_sha256
from malt.errors import InputError
from malt.grading.process_pool import resolve

LOG = logging.getLogger(__name__)


def require_trust(owner: str, function: str, *, trusted: bool) -> None:
    """Raise `InputError` unless the code that `owner` names is trusted; show its files and digests in any case."""
    files = ", ".join(f"{path} (SHA-256 {file_sha256(path)})" for path in _find_code(function)) or "no file found"
    if not trusted:
        raise InputError(
            f"{owner} names code to run: {function}, {files}. Nothing was run; read the code, then add --trust-code"
        )
    LOG.warning("%s names code that runs as trusted: %s, %s", owner, function, files)


def _find_code(function: str) -> Iterator[Path]:
    """Yield the files that a grader process would run to import `module:function`, packages first."""
    module = function.partition(":")[0]
    if module.endswith(".py"):
        yield from (path.resolve() for path in [Path(module)] if path.is_file())
        return
    places, parts = [*sys.path, str(Path.cwd())], module.split(".")
    for depth in range(len(parts)):
        found = PathFinder.find_spec(".".join(parts[: depth + 1]), places)
        if found is None:
            return
        if found.origin is not None and Path(found.origin).is_file():
            yield Path(found.origin).resolve()
        places = list(found.submodule_search_locations or ())


def call_function(name: str, question: str, ground_truth: str, answer: str) -> float | None:
    """Call a user's grader and return its score in [0, 1], or None if it does not know.

    Raises what the grader raises, and `ValueError` for a result that is neither bool, a number in [0, 1], nor None.
    """
    result = resolve(name)(question, ground_truth, answer)
    if result is None:
        return None
    if hasattr(result, "item"):  # numpy's booleans are no bool, torch's numbers no float
        result = result.item()
    if isinstance(result, bool | int | float) and 0 <= result <= 1 and not math.isnan(result):
        return float(result)
    raise ValueError(f"{name} returned {str(result)[:80]!r}; it must return True, False, a number from 0 to 1, or None")


def check_function(name: str) -> None:
    """Import a user's grader; raises what its import raises."""
    resolve(name)
