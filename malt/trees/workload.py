"""What runs in the grader processes: math-verify, and graders that a user wrote. Nothing here guards itself."""

import math
import re
import sys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from malt.trees.pool import resolve

if TYPE_CHECKING:
    from sympy import Basic

MEMORY_LIMIT_BYTES = 2 * 1024**3
"""Address space of a process while it does mathematics: `(10^9)!` must not take the machine's."""

WORDS = re.compile(r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|lim|max|min|mod)\b)[A-Za-z]{3,}")
LATEX_PLACE = re.compile(r"\$|\\\(|\\\[|\\boxed")

MathResult = Literal["equal", "different", "unread"]


class MathVerdict(NamedTuple):
    """How an answer compares to a reference, and what was read of it; both are mathematics, not words, if `symbolic`."""

    result: MathResult
    read: str | None
    symbolic: bool


def compare_math(expected: str, answer: str) -> MathVerdict:
    """Compare an answer to a reference as mathematics; the first of their readings that agree decides.

    `unread`: no mathematics was found in the answer. Raises `ValueError` where there is none in the reference.
    """
    from math_verify import verify

    limit_memory()
    targets = [target for place in places(expected) if (target := read_math(place))]
    if not targets:
        raise ValueError(f"reference {expected[:80]!r} is not mathematics")
    found = [given for place in places(answer) if (given := read_math(place))]
    symbolic = not (WORDS.search(expected) or WORDS.search(answer))
    for given in found:
        if any(verify(target, given, timeout_seconds=None) for target in targets):
            return MathVerdict("equal", str(given[-1]), symbolic)
    return MathVerdict("different" if found else "unread", str(found[0][-1]) if found else None, symbolic)


def is_mathematics(reference: str) -> bool:
    """Say whether math-verify reads anything in a reference."""
    limit_memory()
    return any(read_math(place) for place in places(reference))


def places(text: str) -> list[str]:
    """Return the text as math-verify should see it: it reads LaTeX only between delimiters, words only outside them."""
    if LATEX_PLACE.search(text):
        return [text]
    return [text, f"${text}$"] if WORDS.search(text) else [f"${text}$"]


def read_math(text: str) -> "list[Basic | str]":
    """Return math-verify's reading, empty where there is none."""
    from math_verify import parse

    quiet()
    found: list[Basic | str] = parse(text, parsing_timeout=None)
    return found


@cache
def quiet() -> None:
    """Keep math-verify from warning that its own time limit is off: the pool has one that holds."""
    import logging

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)


@cache
def limit_memory() -> None:
    """Bound this process's address space from now on; a larger demand raises MemoryError."""
    if sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, hard))


def call_function(name: str, question: str, ground_truth: str, answer: str) -> float | None:
    """Call a user's grader and return its score in [0, 1], or None where it does not know.

    Raises whatever it raises, and `ValueError` for a result that is neither bool, a number in [0, 1], nor None.
    """
    result = resolve(name)(question, ground_truth, answer)
    if result is None:
        return None
    if isinstance(result, bool | int | float) and 0 <= result <= 1 and not math.isnan(result):
        return float(result)
    raise ValueError(f"{name} returned {str(result)[:80]!r}; it must return True, False, a number from 0 to 1, or None")


def check_function(name: str) -> None:
    """Import a user's grader; raises what its import raises."""
    resolve(name)


def parse_all(references: Sequence[str]) -> list[str]:
    """Return those references that are not mathematics."""
    return [reference for reference in references if not is_mathematics(reference)]
