"""Finding reference answers that no grader can use, before any model is asked."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future

from malt.config.spec import EvaluatorSpec
from malt.errors import GradingError
from malt.grading.graders import ObjectiveGrader, objective_grader
from malt.grading.process_pool import CallFailed
from malt.grading.suggestions import require_kinds
from malt.questions.question import Question


def check_references(questions: Iterable[Question], spec: EvaluatorSpec) -> None:
    """Make sure that every reference answer can be graded by one of the kinds in `spec`, and that each kind can work.

    Uses no model, but the grader processes: it blocks the caller for some milliseconds for each reference that takes
    parsing. Raises `GradingError` with the first question that cannot be graded, and how many there are;
    `ConfigError` where no kind is chosen.
    """
    asked = list(questions)
    require_kinds(asked, spec)
    graders = [objective_grader(kind, spec) for kind in spec.kind if kind != "llm"]
    for grader in graders:
        grader.check(asked[0] if asked else None)
    if "llm" in spec.kind:
        return
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
    """Return the result; false where there is none in time."""
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
