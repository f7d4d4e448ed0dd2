"""Grading: the tables of cases, the cascade, and graders that cannot grade an answer."""

import asyncio
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt.config.spec import EvaluatorSpec, GraderKind
from malt.errors import GradingError
from malt.grading import graders
from malt.grading.graders import GRADERS, Grader, grade, graders_for, objective_grader
from malt.grading.grades import Evaluation, Grade, Outcome, Verdict, truncated_grade
from malt.grading.judge import LLMEvaluator
from malt.grading.process_pool import worker_pids
from malt.grading.references import check_references
from malt.questions.question import Question
from tests.pool import kill, kill_workers

Case = dict[str, Any]

TABLES: dict[str, list[Case]] = {
    table.stem: [json.loads(line) for line in table.read_text("utf-8").splitlines()]
    for table in sorted((Path(__file__).parents[1] / "cases").glob("grading_*.jsonl"))
}


def question(ground_truth: str, choices: tuple[str, ...] = ()) -> Question:
    return Question(question_id="q7", question="Which?", ground_truth=ground_truth, choices=choices)


def spec(*kind: str, function: str | None = None, timeout_s: float = 120.0) -> EvaluatorSpec:
    return EvaluatorSpec.model_validate({"kind": kind, "function": function, "grader_timeout_s": timeout_s})


async def graded(ground_truth: str, text: str, *kind: str, timeout_s: float = 120.0) -> Grade:
    return await grade(question(ground_truth), text, graders_for(spec(*kind, timeout_s=timeout_s), None))


@pytest.mark.parametrize("table", TABLES)
async def test_the_cases_of_a_table_are_graded_as_they_say(table: str) -> None:
    results = [(case, await graded_case(case)) for case in TABLES[table]]
    assert [(case, result) for case, result in results if not is_as_said(case, result)] == []


async def graded_case(case: Case) -> Grade:
    asked = question(case["ground_truth"], tuple(case.get("choices", ())))
    return await grade(asked, case["text"], graders_for(spec(case["kind"]), None))


def is_as_said(case: Case, result: Grade) -> bool:
    accepted = case["outcome"] if isinstance(case["outcome"], list) else [case["outcome"]]
    return result.outcome in accepted and result.answer == case.get("answer", result.answer)


def test_the_tables_are_large_and_name_their_sources() -> None:
    cases = [case for table in TABLES.values() for case in table]
    assert len(cases) >= 700
    assert all(case["source"] for case in cases)


async def test_a_right_answer_scores_one_and_says_what_was_compared() -> None:
    assert await graded("72", "Final Answer: $72", "number") == Grade(
        Outcome.RIGHT, "$72", "number", Evaluation(1.0, 1.0, ("number: read '$72', expected '72'",), ("$72",), 1.0)
    )


async def test_a_wrong_answer_scores_zero() -> None:
    result = await graded("72", "Final Answer: 71", "number")
    assert (result.reward, result.evaluation) == (0.0, Evaluation(0.0, 0.0, ("number: read '71', expected '72'",)))


async def test_no_answer_counts_as_wrong() -> None:
    result = await graded("72", "I do not know.", "number")
    assert (result.outcome, result.answer, result.reward) == (Outcome.UNANSWERED, None, 0.0)


def test_a_truncated_reply_is_not_graded() -> None:
    result = truncated_grade()
    assert (result.outcome, result.grader, result.reward) == (Outcome.TRUNCATED, "none", 0.0)


async def test_a_long_answer_is_kept_shortened() -> None:
    result = await graded("Paris", "Final Answer: " + "x" * 200_000, "exact")
    assert result.answer is not None
    assert len(result.answer) == 1000


# The cascade.


@dataclass(frozen=True)
class Scripted:
    """A grader with a fixed verdict."""

    kind: str
    verdict: Verdict | None

    async def __call__(self, question: Question, text: str) -> Verdict | None:  # noqa: ARG002
        return self.verdict


def says(kind: str, outcome: Outcome, *, decisive: bool) -> Grader:
    evaluation = None if outcome is Outcome.UNKNOWN else Evaluation(0.0, 0.0)
    error = "it broke" if outcome is Outcome.UNKNOWN else None
    return Scripted(kind, Verdict(Grade(outcome, "a", kind, evaluation, error), decisive))


RIGHT = says("llm", Outcome.RIGHT, decisive=True)
MISS = says("exact", Outcome.WRONG, decisive=False)
FAILED = says("math", Outcome.UNKNOWN, decisive=False)


@pytest.mark.parametrize(
    ("graders", "decided_by", "outcome"),
    [
        ((MISS, RIGHT), "llm", Outcome.RIGHT),
        ((RIGHT, MISS), "llm", Outcome.RIGHT),
        ((FAILED, RIGHT), "llm", Outcome.RIGHT),
        ((MISS,), "exact", Outcome.WRONG),
        ((MISS, says("number", Outcome.UNANSWERED, decisive=False)), "number", Outcome.UNANSWERED),
        ((MISS, FAILED), "math", Outcome.UNKNOWN),
        ((FAILED, MISS), "math", Outcome.UNKNOWN),
        ((Scripted("number", None), MISS), "exact", Outcome.WRONG),
        ((Scripted("number", None),), "number", Outcome.UNKNOWN),
    ],
)
async def test_the_first_that_decides_stands_and_a_failure_is_never_wrong(
    graders: tuple[Grader, ...], decided_by: str, outcome: Outcome
) -> None:
    result = await grade(question("a"), "Final Answer: a", graders)
    assert (result.grader, result.outcome) == (decided_by, outcome)


@pytest.mark.parametrize(
    ("ground_truth", "text", "kinds", "decided_by", "outcome"),
    [
        ("0.5", "Final Answer: 0.5", ("exact", "number"), "exact", Outcome.RIGHT),
        ("0.5", "Final Answer: 1/2", ("exact", "number"), "number", Outcome.RIGHT),
        ("0.5", "Final Answer: 1/3", ("exact", "number", "llm"), "number", Outcome.WRONG),
        ("0.5", "Final Answer: a half", ("exact", "number", "llm"), "number", Outcome.RIGHT),
        ("0.5", "Final Answer: one part in two", ("exact", "number", "llm"), "llm", Outcome.RIGHT),
        ("x^2", "Final Answer: x^3", ("exact", "math", "llm"), "math", Outcome.WRONG),
        ("\\text{even}", "Final Answer: not odd", ("exact", "math", "llm"), "llm", Outcome.RIGHT),
        ("Paris", "Final Answer: the French capital", ("number", "exact", "llm"), "llm", Outcome.RIGHT),
        ("Paris", "Final Answer: Rome", ("number", "exact"), "exact", Outcome.WRONG),
    ],
)
async def test_each_kind_decides_or_passes_on(
    ground_truth: str, text: str, kinds: tuple[str, ...], decided_by: str, outcome: Outcome
) -> None:
    result = await grade(question(ground_truth), text, graders_for(spec(*kinds), RIGHT))
    assert (result.grader, result.outcome) == (decided_by, outcome)


def test_every_kind_of_the_spec_has_a_grader_that_says_what_it_takes_and_refuses() -> None:
    assert {*GRADERS, LLMEvaluator.kind} == set(get_args(GraderKind))
    declared = spec("python", function="json:loads")
    for kind, grader in GRADERS.items():
        made = objective_grader(kind, declared)
        assert (type(made), made.kind) == (grader, kind)
        assert made.refuses
        accepted = made.accepts(question("7", ("7", "8")))
        assert accepted is True or (not isinstance(accepted, bool) and accepted.result() is True)


@pytest.mark.parametrize("kind", get_args(GraderKind))
def test_every_kind_is_named_in_the_guide_and_in_what_the_graders_say(kind: str) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "how-to" / "graders.md").read_text("utf-8")
    assert f"`{kind}`" in guide
    assert f"| `{kind}` |" in (graders.__doc__ or "")


@pytest.mark.parametrize("kind", [kind for kind in GRADERS if kind != "python"])
async def test_every_objective_kind_grades_right_wrong_and_nothing(kind: str) -> None:
    asked = question("B" if kind == "choice" else "7", ("x", "y"))
    made = graders_for(spec(kind), None)
    for text, outcome in (("Final Answer: {}", Outcome.RIGHT), ("Final Answer: 0{}1 A", Outcome.WRONG), ("", None)):
        graded_text = await grade(asked, text.format(asked.ground_truth), made)
        assert graded_text.outcome == (outcome or Outcome.UNANSWERED)


def test_graders_keep_the_order_of_the_config() -> None:
    kinds = ("exact", "math", "llm", "number")
    assert tuple(grader.kind for grader in graders_for(spec(*kinds), RIGHT)) == kinds


def test_a_judge_that_is_named_must_be_given() -> None:
    with pytest.raises(GradingError, match="judge"):
        graders_for(spec("llm"), None)


# References.


@pytest.mark.parametrize(
    ("ground_truth", "kinds", "reason"),
    [
        ("Paris", ("number",), "is not a number"),
        ("10:30", ("number",), "is not a number"),
        ("3, 4", ("number",), "is not a number"),
        ("", ("exact",), "is empty"),
        ("not mathematics", ("math",), "is not mathematics"),
        ("\\frac{1}{", ("math",), "is not mathematics"),
        ("x^2 +", ("math",), "is not mathematics"),
        ("\\frac{1}{\\text{", ("math",), "is not mathematics"),
        ("garage", ("choice",), "is neither a letter"),
        ("F", ("choice",), "is neither a letter"),
        ("Paris", ("number", "math"), "is not a number and is not mathematics"),
    ],
)
def test_a_reference_that_cannot_be_graded_is_found_first(
    ground_truth: str, kinds: tuple[str, ...], reason: str
) -> None:
    asked = question(ground_truth, ("doctor", "bookstore"))
    with pytest.raises(GradingError, match=f"'q7': reference '.*' {reason}"):
        check_references([question("B" if "choice" in kinds else "5", asked.choices), asked], spec(*kinds))


@pytest.mark.parametrize(
    ("ground_truth", "kinds"),
    [
        ("#### 1,250", ("number",)),
        ("$1,250", ("number",)),
        ("1 1/2 cups", ("number",)),
        ("\\boxed{\\frac{1}{2}}", ("math",)),
        ("(-1, 5]", ("math",)),
        ("\\text{Evelyn}", ("math",)),
        ("bookstore", ("choice",)),
        ("(B)", ("choice",)),
        ("Paris", ("number", "exact")),
        ("Paris", ("number", "llm")),
    ],
)
def test_a_reference_that_one_of_the_kinds_can_use_is_fine(ground_truth: str, kinds: tuple[str, ...]) -> None:
    assert refusal(question(ground_truth, ("doctor", "bookstore")), spec(*kinds)) is None


def refusal(asked: Question, evaluator: EvaluatorSpec) -> str | None:
    """Return the reason why a question's reference cannot be graded against, if any."""
    try:
        check_references([asked], evaluator)
    except GradingError as error:
        return str(error)
    return None


def test_a_reference_that_takes_too_long_to_parse_is_not_usable() -> None:
    with pytest.raises(GradingError, match="is not mathematics"):
        check_references([question("(" * 50_000)], spec("math", timeout_s=0.5))


@pytest.mark.parametrize("function", ["no_such_module_here:grade", "json:no_such_function", "json:__doc__"])
def test_a_function_that_cannot_be_imported_is_found_first(function: str) -> None:
    with pytest.raises(GradingError, match=f"{function.partition(':')[0]}.*cannot be imported"):
        check_references([], spec("python", function=function))


# Users' graders.

USERS_GRADERS = """
import time
def fair(question, ground_truth, answer): return ground_truth in answer
def half(question, ground_truth, answer): return 0.5
def most(question, ground_truth, answer): return 0.75
def unsure(question, ground_truth, answer): return None
def broken(question, ground_truth, answer): raise KeyError(answer)
def absurd(question, ground_truth, answer): return 7
def numpys(question, ground_truth, answer): return __import__("numpy").bool_(True)
def asleep(question, ground_truth, answer): time.sleep(60)
"""


@pytest.mark.parametrize(
    ("function", "outcome", "reward", "error"),
    [
        ("fair", Outcome.RIGHT, 1.0, ""),
        ("half", Outcome.WRONG, 0.5, ""),
        ("numpys", Outcome.RIGHT, 1.0, ""),
        ("most", Outcome.RIGHT, 0.75, ""),
        ("unsure", Outcome.UNKNOWN, None, "returned None"),
        ("broken", Outcome.UNKNOWN, None, "KeyError"),
        ("absurd", Outcome.UNKNOWN, None, "must return True, False, a number from 0 to 1, or None"),
        ("asleep", Outcome.UNKNOWN, None, "no result within 1 s"),
    ],
)
async def test_a_users_grader_gives_the_score(
    function: str,
    outcome: Outcome,
    reward: float | None,
    error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "users_graders.py").write_text(USERS_GRADERS)
    monkeypatch.syspath_prepend(tmp_path)
    kill_workers()
    limit_s = 1 if function == "asleep" else 30
    graders = graders_for(spec("python", function=f"users_graders:{function}", timeout_s=limit_s), None)
    result = await grade(question("Paris"), "It is Paris.", graders)
    assert (result.outcome, result.reward) == (outcome, reward)
    assert error in (result.error or "")


@pytest.mark.parametrize(
    ("function", "problem"), [("broken", "KeyError"), ("absurd", "returned '7'"), ("asleep", "no result within 1 s")]
)
def test_a_users_grader_that_fails_on_a_reference_is_refused(function: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(USERS_GRADERS)
    limit_s = 1 if function == "asleep" else 30
    with pytest.raises(GradingError, match=f"mine.py:{function}.*'q7'.*{problem}"):
        check_references(
            [question("Paris")], spec("python", function=f"{tmp_path}/mine.py:{function}", timeout_s=limit_s)
        )


async def test_a_users_grader_is_found_by_its_file_and_finds_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "number_theory.py").write_text("LIMIT = 1")
    (tmp_path / "json.py").write_text("from number_theory import LIMIT\ndef grade(*_): return LIMIT\n")
    found = graders_for(spec("python", function=f"{tmp_path}/json.py:grade"), None)
    assert (await grade(question("Paris"), "London", found)).outcome is Outcome.RIGHT


# Nothing hangs, nothing raises.


async def test_slow_and_huge_answers_are_unknown_while_a_thousand_others_are_graded() -> None:
    await graded("2", "\\boxed{\\frac{4}{2} + x}", "math")
    endless = " + ".join(f"\\binom{{1000000}}{{{500_000 - n}}}" for n in range(200))
    tower = asyncio.create_task(graded("9", f"Final Answer: {endless}", "math", timeout_s=2))
    huge = await graded("9", "Final Answer: " + "1+" * 100_000 + "1", "math", timeout_s=2)
    others = await asyncio.gather(
        *[graded(f"{n}x", f"\\boxed{{\\frac{{{2 * n}x}}{{2}}}}", "math") for n in range(1000)]
    )
    assert {other.outcome for other in others} == {Outcome.RIGHT}
    assert huge.outcome is Outcome.UNKNOWN
    result = await tower
    assert (result.outcome, result.evaluation) == (Outcome.UNKNOWN, None)
    assert "no result within 2 s" in (result.error or "")


async def test_killing_grader_processes_changes_grades_to_unknown_alone() -> None:
    texts = [f"\\boxed{{\\frac{{{n % 7}x}}{{2}}}}" for n in range(300)]
    expected = await asyncio.gather(*[graded("\\frac{3x}{2}", text, "math") for text in texts])
    dice = random.Random(7)

    async def kill_some() -> None:
        for _ in range(3):
            await asyncio.sleep(0.1)
            if pids := worker_pids():
                kill(dice.choice(pids))

    killing = asyncio.create_task(kill_some())
    results = await asyncio.gather(*[graded("\\frac{3x}{2}", text, "exact", "math") for text in texts])
    await killing
    changed = [result for result, before in zip(results, expected, strict=True) if result.outcome != before.outcome]
    assert len(changed) <= 3
    assert {result.outcome for result in changed} <= {Outcome.UNKNOWN}


@given(st.text(), st.text(), st.sampled_from(["exact", "contains", "number", "choice"]))
def test_no_text_and_no_reference_raises(text: str, ground_truth: str, kind: str) -> None:
    for reply in (text, f"Final Answer: {text}", f"\\boxed{{{text}}}", f"#### {text}"):
        result = asyncio.run(graded(ground_truth, reply, kind))
        assert (result.evaluation is None) == (result.outcome is Outcome.UNKNOWN)


@pytest.mark.parametrize("kind", ["exact", "contains", "number", "choice"])
@pytest.mark.parametrize("piece", ["(", "\\boxed{", "Final Answer:", "#### ", "1,", "the answer is ", "A ", "\\frac{"])
async def test_a_hostile_200_kb_reply_is_graded_quickly(kind: str, piece: str) -> None:
    started = time.process_time()
    await graded("A", piece * (200_000 // len(piece)), kind)
    assert time.process_time() - started < 2


@given(st.integers(-999, 999))
async def test_math_and_number_agree_on_whole_numbers(number: int) -> None:
    for kind in ("math", "number"):
        assert (await graded(str(number), f"Final Answer: ${number}$", kind)).outcome is Outcome.RIGHT
        assert (await graded(str(number), f"Final Answer: ${number + 1}$", kind)).outcome is Outcome.WRONG


@pytest.mark.parametrize("kind", ["exact", "contains"])
async def test_any_alias_of_the_reference_is_right(kind: str) -> None:
    asked = Question(
        question_id="q", question="Who?", ground_truth="Sinclair Lewis", metadata={"aliases": ["Harry Sinclair Lewis"]}
    )
    graders = graders_for(EvaluatorSpec(kind=(kind,)), None)
    for answer, outcome in [
        ("Sinclair Lewis", "right"),
        ("Harry Sinclair Lewis", "right"),
        ("Upton Sinclair", "wrong"),
    ]:
        assert (await grade(asked, f"Final Answer: {answer}", graders)).outcome == outcome
