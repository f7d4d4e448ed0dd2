"""Diagnostics of the roles: figures that add up, and the grades behind them."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt.config.roles import PLAYERS
from malt.config.spec import CreditSpec, EvaluatorSpec, RunSpec
from malt.datasets.measures import Diagnostics, FlipTable
from malt.datasets.stats.diagnostics import DiagnosticsCount, stated_verdict
from malt.datasets.stats.figures import describe_diagnostics
from malt.grading.grades import Evaluation, Grade, Outcome
from malt.llm.request import FinishReason
from malt.trees.credit import OwnAnswer, ValuedTree, value_tree
from malt.trees.pipeline import diagnose, diagnosing
from malt.trees.tree import Address, Tree
from tests.strategies import addresses, diagnosed_trees, grade_of, node_of, question_of, tree_of, valued

RIGHT, WRONG, UNKNOWN = Outcome.RIGHT, Outcome.WRONG, Outcome.UNKNOWN


def spec_of(*kinds: str, truncated: str = "wrong") -> RunSpec:
    return RunSpec.model_validate(
        {"name": "arith", "questions": {"source": "q.jsonl"}, "evaluator": {"kind": list(kinds), "model": "judge"}}
        | {"credit": {"truncated": truncated}}
    )


def diagnostics_of(*trees: ValuedTree, spec: RunSpec | None = None) -> Diagnostics:
    count = DiagnosticsCount(spec or spec_of("number"))
    for tree in trees:
        count.add(tree)
    return count.result


def diagnosed(outcomes: Mapping[str, Outcome], answers: Mapping[str, str] | None = None) -> ValuedTree:
    """Return a tree of one generation, one critique and leaves, with these outcomes and answers."""
    shape = (1, 1, len(outcomes) - 1)
    tree = valued(tree_of("q1", shape), [1] * shape[2])
    read = answers or {}
    own = {Address.parse(node): OwnAnswer(outcome, read.get(node)) for node, outcome in outcomes.items()}
    return replace(tree, diagnosis=own)


def written(texts: Mapping[str, str], cut: str | None = None) -> ValuedTree:
    """Return an undiagnosed tree of these texts; the reference is 4; `cut` is the address of a truncated text."""
    nodes = {}
    for node_id, text in texts.items():
        address = Address.parse(node_id)
        reason = FinishReason.LENGTH if node_id == cut else FinishReason.STOP
        nodes[address] = node_of("q1", address, reason, text)
    leaves = {address: grade_of(1) for address in nodes if address.is_leaf}
    return value_tree(Tree(question_of("q1"), nodes), leaves, CreditSpec())


def diagnosis_of(tree: ValuedTree, *kinds: str, scope: str = "leaves") -> dict[str, tuple[Outcome, str | None]]:
    evaluator = EvaluatorSpec.model_validate({"kind": list(kinds), "scope": scope})
    found = asyncio.run(diagnose(tree, evaluator))
    return {str(address): (own.outcome, own.answer) for address, own in found.items()}


def flipped(flips: FlipTable) -> list[int]:
    return [
        share.count
        for share in (flips.wrong_to_right, flips.right_to_right, flips.wrong_to_wrong, flips.right_to_wrong)
    ]


# Who grades what.


@pytest.mark.parametrize(
    ("kinds", "scope", "graders"),
    [
        (("number",), "leaves", ("number",)),
        (("exact", "llm", "math"), "leaves", ("exact", "math")),
        (("exact", "llm"), "all", ("exact",)),
        (("llm",), "leaves", ()),
        (("llm",), "all", ("llm",)),
    ],
)
def test_the_diagnosis_never_asks_a_judge(kinds: tuple[str, ...], scope: str, graders: tuple[str, ...]) -> None:
    assert diagnosing(EvaluatorSpec.model_validate({"kind": kinds, "scope": scope})) == graders


def test_generations_and_refinements_are_graded_by_the_same_graders() -> None:
    tree = written({"0": "Final Answer: four", "0.0": "Verdict: wrong", "0.0.0": "Final Answer: **4**"})
    judged = replace(tree, grades={Address((0, 0, 0)): replace(grade_of(0.0), grader="llm")})
    assert diagnosis_of(judged, "exact", "llm") == {"0": (WRONG, "four"), "0.0.0": (RIGHT, "4")}


def test_a_grade_by_an_objective_grader_of_the_cascade_is_reused() -> None:
    tree = written({"0": "4", "0.0": "fine", "0.0.0": "no answer here"})
    decided = replace(tree, grades={Address((0, 0, 0)): Grade(RIGHT, "4", "exact", Evaluation(1, 1, score=1))})
    assert diagnosis_of(decided, "exact", "llm")["0.0.0"] == (RIGHT, "4")


def test_a_judge_that_graded_everything_anyway_is_the_diagnosis_where_there_is_no_other() -> None:
    tree = written({"0": "4", "0.0": "fine", "0.0.0": "4"})
    judged = replace(tree, grades={address: grade_of(0.25) for address in tree.tree.nodes})
    assert diagnosis_of(judged, "llm", scope="all") == {"0": (WRONG, "5"), "0.0.0": (WRONG, "5")}
    assert diagnosis_of(judged, "llm") == {}


def test_a_generation_cut_off_is_truncated_whatever_it_says() -> None:
    tree = written({"0": "Final Answer: 4", "0.0": "fine", "0.0.0": "4"}, cut="0")
    assert diagnosis_of(tree, "number")["0"] == (Outcome.TRUNCATED, None)


# What adds up.


@given(st.lists(diagnosed_trees(), max_size=3), st.sampled_from(["wrong", "unknown"]))
def test_flips_are_all_leaves_of_which_both_sides_are_known(trees: list[ValuedTree], truncated: str) -> None:
    spec = spec_of("number", truncated=truncated)
    unknown = {UNKNOWN} | ({Outcome.TRUNCATED} if truncated == "unknown" else set())
    known = [
        (tree.diagnosis[Address(leaf.address[:1])].outcome, tree.diagnosis[leaf.address].outcome)
        for tree in trees
        for leaf in tree.tree.leaves
    ]
    both = [(before, after) for before, after in known if not unknown & {before, after}]
    found = diagnostics_of(*trees, spec=spec)
    assert sum(flipped(found.flips)) == len(both)
    lift = sum(after is RIGHT for _, after in both) - sum(before is RIGHT for before, _ in both)
    expected = None if not both else pytest.approx(100 * lift / len(both), abs=0.005)
    assert found.flips.lift_points == expected


@given(st.lists(diagnosed_trees(), max_size=3))
def test_every_text_leaf_critique_and_question_is_counted_once(trees: list[ValuedTree]) -> None:
    found = diagnostics_of(*trees)
    depths = Counter(len(address) for tree in trees for address in tree.tree.nodes)
    for depth, (role, answers) in enumerate(zip(PLAYERS, (found.generator, None, found.refiner), strict=True), 1):
        assert sum(texts.nodes for texts in found.texts[role].values()) == depths[depth]
        assert answers is None or answers.right + answers.wrong + answers.unknown == depths[depth]
    mix = found.questions
    assert sum(part.count for part in (mix.all_right, mix.all_wrong, mix.mixed, mix.unknown)) == len(trees)


@given(st.lists(diagnosed_trees(), max_size=3))
def test_every_leaf_was_decided_by_a_grader_unless_it_is_cut_off_or_unknown(trees: list[ValuedTree]) -> None:
    grades = [grade for tree in trees for grade in tree.grades.values()]
    decided = [grade for grade in grades if grade.outcome not in (Outcome.TRUNCATED, UNKNOWN)]
    assert sum(diagnostics_of(*trees).graded_by.values()) == len(decided)


@given(st.lists(diagnosed_trees(), min_size=1, max_size=3))
def test_only_mixed_questions_give_pairs(trees: list[ValuedTree]) -> None:
    for tree in trees:
        labels = {tree.label(address) for address in tree.tree.nodes} - {None}
        if diagnostics_of(tree).questions.mixed.count == 0:
            assert len(labels) <= 1


def test_counting_nothing_gives_no_percentage() -> None:
    found = diagnostics_of()
    assert found.generator.percent is None
    assert found.flips.lift_points is None
    assert found.unchanged.percent is None


# What the figures say.


def test_the_flip_table_counts_leaves_by_what_they_made_of_their_generation() -> None:
    wrong = diagnosed({"0": WRONG, "0.0.0": RIGHT, "0.0.1": WRONG, "0.0.2": RIGHT, "0.0.3": UNKNOWN})
    right = diagnosed({"0": RIGHT, "0.0.0": RIGHT, "0.0.1": WRONG, "0.0.2": Outcome.UNANSWERED})
    flips = diagnostics_of(wrong, right).flips
    assert flipped(flips) == [2, 1, 1, 2]
    assert flips.wrong_to_right.percent == 33.33
    assert flips.lift_points == 0.0


def test_a_generation_cut_off_counts_as_the_leaves_do() -> None:
    tree = diagnosed({"0": Outcome.TRUNCATED, "0.0.0": RIGHT})
    counted, left_out = (diagnostics_of(tree, spec=spec_of("number", truncated=as_)) for as_ in ("wrong", "unknown"))
    assert (counted.generator.wrong, counted.flips.wrong_to_right.count) == (1, 1)
    assert (left_out.generator.unknown, left_out.flips.wrong_to_right.count) == (1, 0)


def test_an_answer_is_unchanged_when_it_says_the_same_in_other_dress() -> None:
    outcomes = {"0": RIGHT, "0.0.0": RIGHT, "0.0.1": WRONG, "0.0.2": WRONG}
    unchanged = diagnostics_of(diagnosed(outcomes, {"0": "Paris", "0.0.0": "**paris**.", "0.0.1": "Rome"})).unchanged
    assert (unchanged.count, unchanged.percent) == (1, 50.0)


@pytest.mark.parametrize(
    ("critique", "said"),
    [
        ("2 + 2 is 4.\nVerdict: correct", True),
        ("**Verdict:** Wrong.", False),
        ("- verdict: incorrect", False),
        ("Verdict: wrong\nNo, I was mistaken.\n### Verdict: right", True),
        ("The verdict: it depends", None),
        ("My verdict is clear", None),
        ("Verdict: correctness matters", None),
        ("", None),
    ],
)
def test_a_critique_s_last_verdict_counts(critique: str, said: bool | None) -> None:
    assert stated_verdict(critique) is said


def test_no_critique_takes_long_to_read() -> None:
    assert stated_verdict("\n" * 100_000 + "verdict " * 20_000 + "*" * 100_000) is None


def test_verdicts_are_held_against_the_truth_of_what_they_criticise() -> None:
    critiques = ["Verdict: correct", "Verdict: wrong", "Verdict: wrong", "Hm."]
    nodes = {address: node_of("q1", address) for address in addresses((1, 4, 1))}
    for sample, text in enumerate(critiques):
        nodes[Address((0, sample))] = node_of("q1", Address((0, sample)), text=text)
    tree = valued(Tree(question_of("q1"), nodes), [1] * 4)
    found = diagnostics_of(replace(tree, diagnosis={Address((0,)): OwnAnswer(WRONG, "5")})).verdicts
    assert (found.correct_on_wrong, found.wrong_on_wrong, found.unstated) == (1, 2, 1)
    assert found.agree.model_dump() == {"count": 2, "percent": 66.67}


def test_texts_are_counted_by_role_and_by_the_model_that_wrote_them() -> None:
    cut = {Address((0,)): FinishReason.LENGTH, Address((0, 0, 1)): FinishReason.CONTENT_FILTER}
    tree = valued(tree_of("q1", (2, 1, 2), cut), [1, 0, 1, 0])
    found = diagnostics_of(tree, spec=spec_of("llm")).texts
    generator, refiner = found["generator"]["served-model"], found["refiner"]["served-model"]
    assert (generator.truncated.percent, generator.refused.percent) == (50.0, 0.0)
    assert refiner.refused.model_dump() == {"count": 1, "percent": 25.0}
    assert generator.unanswered is found["verifier"]["served-model"].unanswered is None
    assert refiner.unanswered is not None


# In words.


def test_findings_name_every_figure() -> None:
    tree = diagnosed({"0": WRONG, "0.0.0": RIGHT, "0.0.1": WRONG}, {"0": "5", "0.0.0": "4", "0.0.1": "5"})
    told = dict(describe_diagnostics(diagnostics_of(tree)))
    assert told["generations"] == "0 of 1 correct (0.0 %), by number"
    assert told["refinements"] == "1 of 2 correct (50.0 %), by number"
    assert told["flips"].startswith(
        "incorrect to correct 50.0 %, correct to correct 0.0 %, incorrect to incorrect 50.0 %"
    )
    assert told["flips"].endswith("lift +50.0 points")
    assert told["unchanged"].startswith("50.0 %")
    assert told["verdicts"] == "n/a of those stated are true; 1 critiques state none"


def test_findings_say_so_where_nobody_could_diagnose() -> None:
    tree = valued(tree_of("q1", (1, 1, 2)), [1, 0])
    told = dict(describe_diagnostics(diagnostics_of(tree, spec=spec_of("llm"))))
    assert told["generations"].startswith("not known: the judge graded the leaves alone")
    assert "flips" not in told
    assert told["questions"] == "0.0 % all positive, 0.0 % all negative, 100.0 % mixed; only mixed ones give pairs"
