"""Reference answers: how each kind of grader reads one, and finding those that it cannot use before any model call."""

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from functools import lru_cache

from malt.config.spec import EvaluatorSpec
from malt.errors import GradingError
from malt.grading.answers import clean, normalised, parse_choice
from malt.grading.math_worker import check_function, is_mathematics
from malt.grading.numbers import Quantity, parse_quantity
from malt.grading.process_pool import START_LIMIT_S, CallFailed, submit
from malt.questions.question import Question

NOT_USABLE = {
    "number": "is not a number",
    "math": "is not mathematics that math-verify can parse",
    "choice": "is neither a letter nor the text of one of its choices",
    "exact": "is empty",
    "contains": "is empty",
}


def check_references(questions: Iterable[Question], spec: EvaluatorSpec) -> None:
    """Make sure that every reference answer can be graded by one of the kinds in `spec`, and that `function` imports.

    Uses no model, but the grader processes: it blocks the caller for some milliseconds for each reference that takes
    parsing. Raises `GradingError` with the first question that cannot be graded, and how many there are.
    """
    if spec.function is not None:
        check_import(spec.function)
    if "llm" in spec.kind or "python" in spec.kind:
        return
    open_questions = [question for question in questions if not usable(question, spec)]
    if "math" in spec.kind:
        parsed = parse_references({question.ground_truth for question in open_questions}, spec.grader_timeout_s)
        open_questions = [question for question in open_questions if not parsed[question.ground_truth]]
    if open_questions:
        raise GradingError(complaint(open_questions, spec))


def check_import(function: str) -> None:
    """Import a user's grader where it will run."""
    try:
        submit(check_function, function, timeout_s=START_LIMIT_S).result()
    except CallFailed as failure:
        raise GradingError(
            f"[evaluator] function = {function!r} cannot be imported: {failure}; "
            "it must be a function in a module on the Python path"
        ) from None


def usable(question: Question, spec: EvaluatorSpec) -> bool:
    """Whether one of the kinds can use the reference, as far as looking at it tells."""
    reference = question.ground_truth
    if {"number", "math"} & set(spec.kind) and number_reference(reference):
        return True
    if "choice" in spec.kind and choice_reference(reference, question.choices):
        return True
    return bool({"exact", "contains"} & set(spec.kind) and text_reference(reference))


def parse_references(references: Iterable[str], timeout_s: float) -> Mapping[str, bool]:
    """Return whether each of the references is mathematics; one that takes longer than an answer may is not."""
    waiting = {reference: submit(is_mathematics, reference, timeout_s=timeout_s) for reference in references}
    return {reference: succeeded(future) for reference, future in waiting.items()}


def succeeded(future: "Future[bool]") -> bool:
    """Return the result, false where there is none."""
    try:
        return future.result()
    except CallFailed:
        return False


def complaint(questions: list[Question], spec: EvaluatorSpec) -> str:
    """Say which reference cannot be used, and why."""
    first = questions[0]
    reasons = " and ".join(dict.fromkeys(NOT_USABLE[kind] for kind in spec.kind))
    others = f" (and {len(questions) - 1} more)" if len(questions) > 1 else ""
    return (
        f"question {first.question_id!r}: reference {first.ground_truth[:80]!r} {reasons}, "
        f"so [evaluator] kind = {', '.join(spec.kind)} cannot grade it{others}; fix the question file or add a kind"
    )


@lru_cache(maxsize=8192)
def number_reference(reference: str) -> Quantity | None:
    """Return the number that a text is, after a `####` or in a box too; None where it is not one."""
    return parse_quantity(clean(reference.rpartition("####")[2]))


@lru_cache(maxsize=8192)
def choice_reference(reference: str, choices: tuple[str, ...]) -> str | None:
    """Return the letter of a reference, which may be written as the choice's own text."""
    return parse_choice(clean(reference), choices)


@lru_cache(maxsize=8192)
def text_reference(reference: str) -> str:
    """Return a reference as texts are compared; one that is nothing but punctuation stays as it is."""
    return normalised(reference) or reference.strip().casefold()


@lru_cache(maxsize=8192)
def spellings(reference: str) -> tuple[str, ...]:
    """Return the texts that `contains` looks for: the reference, and a whole number with and without its commas."""
    number = parse_quantity(reference)
    text = text_reference(reference)
    if number is None or not is_whole(number):
        return (text,)
    return tuple(dict.fromkeys((text, str(number.value), f"{int(number.value):,}")))


def is_whole(number: Quantity) -> bool:
    """Whether this is a plain whole number, without percent or magnitude."""
    return number.value.denominator == 1 and number.scale == 1


def stands_in(words: str, text: str) -> bool:
    """Whether these words occur in a text whole: `7` not in `17`, `7.5`, `1,7` or `-7`."""
    start = text.find(words) if words else -1
    while start >= 0:
        if is_apart(text, start, start + len(words)):
            return True
        start = text.find(words, start + 1)
    return False


def is_apart(text: str, start: int, end: int) -> bool:
    """Whether no word or number goes on at either end."""
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    if text[start].isdigit() and NUMBER_BEFORE.search(before):
        return False
    if text[end - 1].isdigit() and NUMBER_AFTER.match(after):
        return False
    return not (joined(before[-1:], text[start]) or joined(text[end - 1], after[:1]))


NUMBER_BEFORE = re.compile(r"[-\u2212.]$|[0-9],$")
NUMBER_AFTER = re.compile(r"[.,][0-9]")


def joined(left: str, right: str) -> bool:
    """Whether two neighbours belong to one word."""
    return bool(left and right) and (left.isalnum() or left == "_") and (right.isalnum() or right == "_")
