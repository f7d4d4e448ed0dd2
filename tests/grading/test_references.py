"""Suggested graders, and the refusal of a run without any."""

import pytest

from malt.config.spec import EvaluatorSpec, GraderKind
from malt.errors import ConfigError
from malt.grading.references import check_references, suggest_kinds
from malt.questions.question import Question


def questions(*references: str, choices: tuple[str, ...] = ()) -> list[Question]:
    return [
        Question(question_id=str(place), question="?", ground_truth=reference, choices=choices)
        for place, reference in enumerate(references)
    ]


@pytest.mark.parametrize(
    ("references", "choices", "kinds"),
    [
        (("72", "1,000", "-3.5", "50%"), (), ("number",)),
        (("A", "B"), ("bank", "river"), ("choice",)),
        ((r"\frac{1}{2}", "7"), (), ("number", "math")),
        (("$x^2$", "7"), (), ("number", "math")),
        (("Paris", "72"), (), ("llm",)),
    ],
)
def test_the_reference_answers_say_which_graders_suit(
    references: tuple[str, ...], choices: tuple[str, ...], kinds: tuple[GraderKind, ...]
) -> None:
    assert suggest_kinds(questions(*references, choices=choices)).kinds == kinds


def test_without_a_kind_a_run_is_refused_and_told_which_would_suit() -> None:
    with pytest.raises(ConfigError) as refused:
        check_references(questions("72", "8"), EvaluatorSpec())
    assert str(refused.value) == (
        "evaluator.kind: missing, and there is no default. Kinds: llm, exact, contains, number, math, choice, python.\n"
        'Suggested, as the reference answers are numbers: [evaluator] kind = "number"'
    )
