"""Which graders suit reference answers, and which references none can use: said before any model is asked."""

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
    """Make sure that every reference answer can be graded by one of the kinds in `spec`, and that each kind can work.

    Uses no model, but the grader processes: it blocks the caller for some milliseconds for each reference that takes
    parsing. Raises `GradingError` with the first question that cannot be graded, and how many there are;
    `ConfigError` where no kind is chosen.
    """
    asked = list(questions)
    _require_kinds(asked, spec)
    graders = [objective_grader(kind, spec) for kind in spec.kind if kind != "llm"]
    for grader in graders:
        grader.check(asked[0] if asked else None)
    if "llm" not in spec.kind:
        _check_each(asked, graders)


def _check_each(asked: Sequence[Question], graders: Sequence[ObjectiveGrader]) -> None:
    accepted = [(question, _accepted(question, graders)) for question in asked]
    refused = [question for question, found in accepted if not any(map(_result, found))]
    if refused:
        raise GradingError(_complaint(refused, graders))


def _accepted(question: Question, graders: Sequence[ObjectiveGrader]) -> list["bool | Future[bool]"]:
    """Return what the graders say, up to the first that is sure."""
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


# Suggestions. There is no default kind: one that does not suit fails silently.

_LATEX = re.compile(r"\\[a-zA-Z]+|[_^]\{|\$[^$]+\$|[\^=]")
_LOOKED_AT = 1000
"""Questions; the kind of reference answer rarely changes after these."""


class Suggestion(NamedTuple):
    """Kinds of graders, and what in the reference answers speaks for them."""

    kinds: tuple[GraderKind, ...]
    reason: str

    @property
    def as_toml(self) -> str:
        listed = ", ".join(f'"{kind}"' for kind in self.kinds)
        return f"kind = {listed if len(self.kinds) == 1 else f'[{listed}]'}"


def suggest_kinds(questions: Sequence[Question]) -> Suggestion:
    """Suggest graders from what the reference answers look like."""
    looked_at = questions[:_LOOKED_AT]
    if all(question.choices for question in looked_at):
        return Suggestion(("choice",), "the questions have choices")
    if any(_LATEX.search(question.ground_truth) for question in looked_at):
        return Suggestion(("number", "math"), "reference answers are written in LaTeX")
    if all(parse_quantity(question.ground_truth) is not None for question in looked_at):
        return Suggestion(("number",), "the reference answers are numbers")
    return Suggestion(("llm",), "the reference answers are words, which a judge reads best; name its model too")


def _require_kinds(questions: Sequence[Question], spec: EvaluatorSpec) -> None:
    """Raise `ConfigError`, with a suggestion, where a config does not say how answers are graded."""
    if not spec.kind:
        found = suggest_kinds(questions)
        raise ConfigError(
            f"evaluator.kind: missing, and there is no default. Kinds: {', '.join(get_args(GraderKind))}.\n"
            f"Suggested, as {found.reason}: [evaluator] {found.as_toml}"
        )
