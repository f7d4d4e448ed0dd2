"""Checks before any model is asked: graders that work and can use the reference answers; suggestions of graders."""

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import NamedTuple, get_args

from malt.config.spec import EvaluatorSpec, GraderKind
from malt.errors import ConfigError, GradingError
from malt.grading.graders import ObjectiveGrader, objective_grader
from malt.grading.numbers import parse_quantity
from malt.grading.process_pool import CallFailed
from malt.questions.question import Question


def check_references(questions: Iterable[Question], spec: EvaluatorSpec) -> None:
    """Check that each grader in `spec` works, and that one of them can use each reference answer.

    Asks no model, but uses the grader processes: it blocks the caller for some milliseconds for each reference that
    must be parsed. Raises `GradingError` with the first question that cannot be graded and the number of such
    questions, `ConfigError` if no kind is chosen.
    """
    listed = list(questions)
    _require_kinds(listed, spec)
    graders = [objective_grader(kind, spec) for kind in spec.kind if kind != "llm"]
    for grader in graders:
        grader.check(listed[0] if listed else None)
    if "llm" not in spec.kind:
        _check_each(listed, graders)


def _check_each(questions: Sequence[Question], graders: Sequence[ObjectiveGrader]) -> None:
    accepted = [(question, _accepted(question, graders)) for question in questions]
    refused = [question for question, found in accepted if not any(map(_result, found))]
    if refused:
        raise GradingError(_complaint(refused, graders))


def _accepted(question: Question, graders: Sequence[ObjectiveGrader]) -> list["bool | Future[bool]"]:
    """Return the graders' results up to the first immediate yes."""
    found: list[bool | Future[bool]] = []
    for grader in graders:
        found.append(grader.accepts(question))
        if found[-1] is True:
            break
    return found


def _result(found: "bool | Future[bool]") -> bool:
    try:
        return found if isinstance(found, bool) else found.result()
    except CallFailed:
        return False


def _complaint(questions: list[Question], graders: Sequence[ObjectiveGrader]) -> str:
    first = questions[0]
    reasons = " and ".join(dict.fromkeys(grader.refuses for grader in graders))
    others = f" (and {len(questions) - 1} more)" if len(questions) > 1 else ""
    return (
        f"question {first.question_id!r}: reference {first.ground_truth[:80]!r} {reasons}, so [evaluator] kind = "
        f"{', '.join(grader.kind for grader in graders)} cannot grade it{others}; fix the question file or add a kind"
    )


# Suggestions. There is no default kind, since an unsuitable grader fails silently.

_LATEX = re.compile(r"\\[a-zA-Z]+|[_^]\{|\$[^$]+\$|[\^=]")
_LOOKED_AT = 1000
"""Number of questions looked at; the kind of reference answer rarely changes after these."""


class Suggestion(NamedTuple):
    """Suggested kinds of graders, and the reason in the reference answers."""

    kinds: tuple[GraderKind, ...]
    reason: str

    @property
    def as_toml(self) -> str:
        listed = ", ".join(f'"{kind}"' for kind in self.kinds)
        return f"kind = {listed if len(self.kinds) == 1 else f'[{listed}]'}"


def suggest_kinds(questions: Sequence[Question]) -> Suggestion:
    """Suggest graders from the form of the reference answers."""
    looked_at = questions[:_LOOKED_AT]
    if all(question.choices for question in looked_at):
        return Suggestion(("choice",), "the questions have choices")
    if any(_LATEX.search(question.ground_truth) for question in looked_at):
        return Suggestion(("number", "math"), "reference answers are written in LaTeX")
    if all(parse_quantity(question.ground_truth) is not None for question in looked_at):
        return Suggestion(("number",), "the reference answers are numbers")
    return Suggestion(("llm",), "the reference answers are words, which a judge reads best; name its model too")


def _require_kinds(questions: Sequence[Question], spec: EvaluatorSpec) -> None:
    """Raise `ConfigError`, with a suggestion, if a config names no grader."""
    if not spec.kind:
        found = suggest_kinds(questions)
        raise ConfigError(
            f"evaluator.kind: missing, and there is no default. Kinds: {', '.join(get_args(GraderKind))}.\n"
            f"Suggested, as {found.reason}: [evaluator] {found.as_toml}"
        )
