"""What runs in the grader processes: math-verify, and graders that a user wrote. Nothing here guards itself."""

import math
import re
import sys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from malt.grading.process_pool import resolve

if TYPE_CHECKING:
    from sympy import Basic

MEMORY_LIMIT_BYTES = 2 * 1024**3
"""Address space of a process while it does mathematics: `(10^9)!` must not take the machine's."""

TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox|operatorname|begin|end)\s*\{[^{}]*+\}")
WORD = re.compile(
    r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|cot|sec|csc|log|exp|sqrt|lim|max|min|mod)(?![A-Za-z]))[A-Za-z]{3,}"
)
LATEX_PLACE = re.compile(r"\$|\\\(|\\\[|\\boxed")
JOINED = re.compile(r",?\s(?:and|or)\s")

MathResult = Literal["equal", "different", "unread", "no reference"]


class MathVerdict(NamedTuple):
    """How an answer compares to a reference, and what was read of it; `symbolic`: there are no words on either side."""

    result: MathResult
    read: str | None = None
    symbolic: bool = False


def compare_math(expected: str, answer: str) -> MathVerdict:
    """Compare an answer to a reference as mathematics, with math-verify: order matters, the reference sets the form."""
    from math_verify import verify

    prepare()
    target = read_math(expected)
    if not is_symbolic(target):
        return MathVerdict("no reference")
    given = read_math(answer)
    if not given:
        return MathVerdict("unread")
    equal = verify(target, given, timeout_seconds=None)
    symbolic = is_symbolic(given) and not (WORD.search(expected) or WORD.search(answer))
    return MathVerdict("equal" if equal else "different", str(given[-1]), symbolic)


def is_mathematics(reference: str) -> bool:
    """Say whether math-verify finds mathematics in a reference; words outside LaTeX are none."""
    prepare()
    return is_symbolic(read_math(reference))


def read_math(text: str) -> "list[Basic | str]":
    """Return what math-verify reads: expressions, then the text they were read from; empty where it finds nothing."""
    from math_verify import parse

    found: list[Basic | str] = parse(placed(text), parsing_timeout=None)
    return found


def placed(text: str) -> str:
    """Set mathematics that stands bare between delimiters: LaTeX is read only there, words only outside."""
    if LATEX_PLACE.search(text) or WORD.search(JOINED.sub(", ", TEXT_COMMAND.sub("", text))):
        return text
    return f"${JOINED.sub(', ', text)}$"


def is_symbolic(found: "Sequence[Basic | str]") -> bool:
    """Whether anything was understood, rather than only found."""
    return any(not isinstance(each, str) for each in found)


@cache
def prepare() -> None:
    """Bound what this process may take, and keep math-verify from warning that its own time limit is off."""
    import logging

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    limit_memory()


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
    if hasattr(result, "item"):  # numpy's booleans are no bool, torch's numbers no float
        result = result.item()
    if isinstance(result, bool | int | float) and 0 <= result <= 1 and not math.isnan(result):
        return float(result)
    raise ValueError(f"{name} returned {str(result)[:80]!r}; it must return True, False, a number from 0 to 1, or None")


def check_function(name: str) -> None:
    """Import a user's grader; raises what its import raises."""
    resolve(name)
