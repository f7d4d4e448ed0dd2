"""Verdict on a mathematical answer: at once for equal texts and plain numbers, else from a grader process."""

import logging
import re
from functools import lru_cache

from malt.grading.answers import clean, final_answer, unmarked_formula
from malt.grading.grades import Verdict, disputed, right, unanswered, unknown, unread, wrong
from malt.grading.mathematics.worker import MathVerdict, compare_math
from malt.grading.process_pool import CallFailed, run_in_pool
from malt.questions.question import Question

LOG = logging.getLogger("malt.grading")

_LONGEST = 10_000
"""Most characters of an answer that is compared as mathematics; the grade of a longer one is unknown."""


async def compare_as_mathematics(kind: str, question: Question, text: str, timeout_s: float) -> Verdict | None:
    """Compare a reply's answer to the reference, without a process if the texts are equal or both are digits."""
    target, answer = math_reference(question.ground_truth), final_answer(text)
    read = unmarked_formula(text) if answer is None else answer
    if len(read) > _LONGEST:
        return unknown(kind, None, f"an answer of {len(read):,} characters is too long to be compared")
    if not read:
        return unanswered(kind)
    plainly = _compare_plainly(read, target)
    if plainly is not None:
        return (right if plainly else wrong)(kind, read, question)
    try:
        compared = await run_in_pool(compare_math, target, read, question.question, timeout_s=timeout_s)
    except CallFailed as failure:
        return unknown(kind, answer, str(failure))
    return _math_verdict(kind, compared, read, question, marked=answer is not None)


def _math_verdict(kind: str, compared: MathVerdict, read: str, question: Question, *, marked: bool) -> Verdict | None:
    if compared.result == "no reference":
        return None
    if compared.result == "equal":
        return right(kind, read, question)
    if not marked and (compared.words or compared.result == "unread"):
        return unanswered(kind)
    if compared.result == "unread":
        return unread(kind, read, compared.why)
    if compared.result == "disputed":
        LOG.warning("question %s: %s equals the reference, but %s", question.question_id, read, compared.why)
        return disputed(kind, read, question, compared.why)
    return wrong(kind, read, question, decisive=not compared.words)


@lru_cache(maxsize=8192)
def math_reference(reference: str) -> str:
    """Return the mathematics in a reference: in its last boxes, several of them as a list, or after a `####`."""
    boxes = final_answer(reference) if "\\boxed" in reference else None
    return boxes or clean(reference.rpartition("####")[2])


def _compare_plainly(answer: str, reference: str) -> bool | None:
    """Return whether two texts, or the plain numbers that they are, are equal; None if they must be parsed."""
    if "".join(answer.split()) == "".join(reference.split()):
        return True
    given, wanted = plain_number(answer), plain_number(reference)
    return None if given is None or wanted is None else given == wanted


_PLAIN_NUMBER = re.compile(r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,300})", re.ASCII)


def plain_number(text: str) -> int | None:
    """Return the whole number that a text of digits alone is, else None."""
    return int(text.replace(",", "")) if _PLAIN_NUMBER.fullmatch(text) else None
