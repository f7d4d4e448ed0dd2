"""Comparison of mathematics, to be run in grader processes: it sets no time limit of its own."""

import importlib
import logging
import re
import sys
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from malt.grading.mathematics.tokens import Unread

if TYPE_CHECKING:
    from malt.grading.mathematics.readings import Reading

_MEMORY_LIMIT_BYTES = 2 * 1024**3
"""Most address space of a grader process, so that `(10^9)!` does not use up the machine's memory."""


@cache
def prepare_process() -> None:
    """Import the slow modules and limit the process's memory; process_pool.py calls this before the first call."""
    for name in ("math_verify", "malt.grading.mathematics.compare", "malt.grading.mathematics.reader"):
        importlib.import_module(name)
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it would warn that its own time limit is off
    _limit_memory()


MathResult = Literal["equal", "different", "disputed", "unread", "no reference"]


class MathVerdict(NamedTuple):
    """Result of comparing an answer to a reference, and why it was not read; `words`: one of them is words.

    `disputed`: they are equal, but math-verify's own comparison of the same two expressions says that they are not.
    """

    result: MathResult
    why: str = ""
    words: bool = False


def compare_math(reference: str, answer: str, question: str) -> MathVerdict:
    """Compare an answer to a reference as mathematics: both are read whole, or they are not compared.

    One point at which two expressions differ proves them different; equality is checked with math-verify too.
    """
    from malt.grading.mathematics.compare import same
    from malt.grading.mathematics.readings import Words

    try:
        target = _read_reference(reference, question)
    except Unread as unread:
        return MathVerdict("unread" if _is_known(reference) else "no reference", f"of the reference, {unread}")
    try:
        given = _read(answer, reference, question)
        equal = same(target, given)
    except Unread as unread:
        return MathVerdict("unread", str(unread))
    if equal and _denied(target, given):
        return MathVerdict("disputed", "math-verify finds them different")
    words = isinstance(target, Words) or isinstance(given, Words)
    return MathVerdict("equal" if equal else "different", words=words)


def is_mathematics(reference: str, question: str, may_be_words: bool) -> bool:
    """Whether a reference is read whole as mathematics, or as words where it `may_be_words`, as with `\\text`."""
    from malt.grading.mathematics.readings import Words

    try:
        return not isinstance(_read_reference(reference, question), Words) or may_be_words
    except Unread:
        return _is_known(reference)


@lru_cache(maxsize=2048)
def _is_known(reference: str) -> bool:
    """Whether math-verify reads a reference that we cannot, such as an integral: then only the same text is right."""
    from math_verify import parse

    found = parse(f"${reference}$", parsing_timeout=None) if "\\" in reference else []
    return any(not isinstance(each, str) for each in found)


def is_expression(reference: str, question: str) -> bool:
    from malt.grading.mathematics.readings import MathValue

    try:
        return isinstance(_read_reference(reference, question), MathValue)
    except Unread:
        return False


_BARE_METRES = re.compile(r"\s*[0-9.]+\s?m\s*")
_NOUN = re.compile(r"[A-Za-z]{3,}")


@lru_cache(maxsize=2048)
def _read_reference(reference: str, question: str) -> "Reading":
    """Read a reference; `12m` are metres where the question has no symbol `m`."""
    if _BARE_METRES.fullmatch(reference) and not re.search(r"(?<![A-Za-z\\])m(?![A-Za-z])", question):
        reference = reference.replace("m", r"\text{ m}")
    return _read(reference, reference, question)


def _read(text: str, reference: str, question: str) -> "Reading":
    from malt.grading.mathematics.reader import read_math

    return read_math(text, _nouns(question + " " + reference), frozenset(reference))


@lru_cache(maxsize=2048)
def _nouns(context: str) -> frozenset[str]:
    """Return the words of a question and its reference, which an answer may name beside its value."""
    from malt.grading.words import TURNING

    return frozenset(word.lower() for word in _NOUN.findall(context)) - TURNING


def _denied(target: "Reading", given: "Reading") -> bool:
    """Whether math-verify finds two expressions different; it is called only for unequal forms, none rational."""
    from math_verify import verify

    from malt.grading.mathematics.compare import sympy_form

    left, right = sympy_form(target), sympy_form(given)
    if left is None or right is None or left == right or True in (left.is_Rational, right.is_Rational):
        return False
    return not verify(left, right, timeout_seconds=None)


def _limit_memory() -> None:
    """Limit this process's address space from now on; allocating more raises MemoryError."""
    if sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT_BYTES, hard))
