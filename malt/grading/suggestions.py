"""Which graders suit a file's reference answers. There is no default: one that does not suit fails silently."""

import re
from collections.abc import Sequence
from typing import NamedTuple, get_args

from malt.config.spec import EvaluatorSpec, GraderKind
from malt.errors import ConfigError
from malt.grading.numbers import parse_quantity
from malt.questions.question import Question

_LATEX = re.compile(r"\\[a-zA-Z]+|[_^]\{|\$[^$]+\$|[\^=]")
_LOOKED_AT = 1000
"""Questions; the kind of reference answer rarely changes after these."""


class Suggestion(NamedTuple):
    """Kinds of graders, and what in the reference answers speaks for them."""

    kinds: tuple[GraderKind, ...]
    reason: str

    @property
    def as_toml(self) -> str:
        """Return the line of a config."""
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


def require_kinds(questions: Sequence[Question], spec: EvaluatorSpec) -> None:
    """Raise `ConfigError`, with a suggestion, where a config does not say how answers are graded."""
    if not spec.kind:
        found = suggest_kinds(questions)
        raise ConfigError(
            f"evaluator.kind: missing, and there is no default. Kinds: {', '.join(get_args(GraderKind))}.\n"
            f"Suggested, as {found.reason}: [evaluator] {found.as_toml}"
        )
