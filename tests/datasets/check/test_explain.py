"""`malt explain`: the origin of every row of a version, and the reason why a candidate did not become a row."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt.cli.main import exit_code
from malt.config.roles import PLAYERS, Role
from malt.config.settings import Settings
from malt.config.spec import CreditSpec, DatasetSpec
from malt.datasets.check.explain import explain, write_arithmetic
from malt.datasets.publish.writer import Provenance
from malt.datasets.rows.examples import write_rows
from malt.datasets.rows.gates import Context
from malt.datasets.rows.selection import GateTrace, select
from malt.datasets.rows.tables import TEXT_KINDS
from malt.datasets.version.dataset_version import DatasetVersion
from malt.errors import VersionError
from malt.grading.grades import Evaluation, Grade, Outcome
from malt.llm.request import FinishReason
from malt.prompts import load_prompts
from malt.questions.screening import Exclusion, Screening
from malt.trees.credit import ValuedTree, value_tree
from malt.trees.tree import Address
from tests.published import PROVENANCE, copied, mixed_tree, publish, publish_questions, spec_of
from tests.strategies import grade_of, incomplete_tree_of, leaf_addresses, tree_of, valued, valued_trees

SWITCHES = [
    DatasetSpec(),
    DatasetSpec(generator_dpo=True, min_margin=0.4, balance="labels"),
    DatasetSpec(min_confidence=0.8, max_pairs_per_question=1),
    DatasetSpec(same_answer=(), repeats="drop", identical_pairs="keep", max_examples_per_question=1),
]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("datasets")
    publish_questions(["q1", "q17", "a/b"], folder)
    return folder


@pytest.fixture
def version(datasets: Path) -> DatasetVersion:
    return copied(datasets, Settings().datasets_dir)


def published(tree: ValuedTree, **dataset: bool | float | str) -> DatasetVersion:
    return publish([tree], spec_of(**dataset), PROVENANCE, Settings().datasets_dir)


def why(version: DatasetVersion, row_id: str) -> str:
    decision = explain(version, row_id).decision
    assert decision is not None
    return decision.why


def pairs_of(tree: ValuedTree, role: Role) -> Iterator[tuple[Address, Address]]:
    """Yield every two siblings, in both orders."""
    nodes = [address for address in tree.tree.nodes if address.role is role]
    return ((one, other) for one in nodes for other in nodes if one.parent == other.parent and one != other)


@given(valued_trees(), st.sampled_from(SWITCHES))
def test_the_explained_outcome_of_each_candidate_agrees_with_the_files(tree: ValuedTree, spec: DatasetSpec) -> None:
    for role in PLAYERS:
        selected = select(tree, role, spec)
        rows = {kind: write_rows(kind, tree, role, found.kept) for kind, found in selected.items()}
        stored = {row["row_id"] for each in rows.values() for row in each}
        decisions = GateTrace(Context(tree, role, spec), stored)
        nodes = [address for address in tree.tree.nodes if address.role is role]
        found = [decisions.decide(kind, address) for kind in TEXT_KINDS for address in nodes]
        found += [decisions.decide("dpo", *pair) for pair in pairs_of(tree, role)]
        assert {each.row_id for each in found if each.kept} == stored
        assert all((each.why == "kept") == each.kept and "malt verify" not in each.why for each in found)
        dropped = [each.left_out_by for each in found if each.left_out_by and each.row_id.startswith("dpo")]
        assert {gate: dropped.count(gate) for gate in dropped} == {
            gate: count for gate, count in selected["dpo"].dropped.items() if count
        }


@given(valued_trees())
def test_the_arithmetic_says_what_the_label_is(tree: ValuedTree) -> None:
    for address in tree.tree.nodes:
        line, label = write_arithmetic(tree, address), tree.label(address)
        assert line.endswith({True: ": positive", False: ": negative", None: "no grade below is known"}[label])
        if label is not None:
            assert (float(line.split()[0].rstrip(",")) > tree.threshold) == label


@pytest.mark.parametrize(
    ("row_id", "line"),
    [
        ("sft-verifier/q1/0.0", "0.67 = (1 + 0 + 1) / 3 leaves, above 0.5: positive"),
        ("kto-verifier/q1/2.2", "0.50 = (1 + 0) / 2 known of 3 leaves, not above 0.5: negative"),
        ("sft-generator/q1/0", "0.56 = (1 + 0 + 1 + 0 + 0 + 0 + 1 + 1 + 1) / 9 leaves, above 0.5: positive"),
        ("sft-refiner/q1/0.0.0", "1.00, its own grade, above 0.5: positive"),
        ("q1/2.2.0", "no value and no label: no grade below is known"),
    ],
)
def test_a_value_is_a_mean_of_leaves_pooled(version: DatasetVersion, row_id: str, line: str) -> None:
    assert explain(version, row_id).text.arithmetic == line


def test_a_value_just_above_the_threshold_is_not_rounded_onto_it() -> None:
    tree = valued(tree_of("q1", (1, 1, 2)), [0.501, 0.503])
    assert write_arithmetic(tree, Address((0,))) == "0.502 = (0.501 + 0.503) / 2 leaves, above 0.5: positive"


def test_equal_rewards_of_many_leaves_are_summed_in_one_term() -> None:
    tree = valued(tree_of("q1", (1, 4, 10)), [1, 1, 0.25, 0] * 10)
    assert write_arithmetic(tree, Address((0,))).startswith("0.56 = (20 x 1 + 10 x 0.25 + 10 x 0) / 40 leaves")


def test_a_row_of_every_file_is_explained(version: DatasetVersion) -> None:
    for role in PLAYERS:
        for kind, frame in (("sft", version.sft(role)), ("dpo", version.dpo(role)), ("kto", version.kto(role))):
            for row in frame[frame["question_id"] == "a/b"].to_dict("records"):
                explained = explain(version, row["row_id"])
                assert explained.file == f"{kind}/{role}.parquet"
                assert explained.question_id == row["question_id"]
                assert [turn.model_dump() for turn in explained.prompt or ()] == list(row["prompt"])
                assert explained.decision is not None
                assert explained.decision.why == "kept"


def test_a_row_tells_its_text_and_who_graded_what(version: DatasetVersion) -> None:
    explained = explain(version, "sft-verifier/a/b/0.0")
    assert (explained.question, explained.ground_truth, explained.role) == ("What is a/b?", "4", "verifier")
    assert explained.text.text == "verifier 0.0 on a/b"
    assert [leaf.model_dump() for leaf in explained.text.leaves[:2]] == [
        {"node_id": "0.0.0", "reward": 1, "outcome": "right", "read": "4", "grader": "llm",
         "explanation": ("worth 1",), "error": None},
        {"node_id": "0.0.1", "reward": 0, "outcome": "wrong", "read": "5", "grader": "llm",
         "explanation": ("worth 0",), "error": None},
    ]  # fmt: skip
    assert explained.text.evaluation is not None
    assert explained.text.evaluation.explanation == ("worth 1", "worth 0")


def test_a_leaf_that_counts_for_nothing_says_why(version: DatasetVersion) -> None:
    unknown = explain(version, "q1/2.2").text.leaves[0]
    assert (unknown.reward, unknown.outcome, unknown.error) == (None, "unknown", "the judge's reply could not be read")


def test_a_truncated_leaf_counts_as_the_config_says() -> None:
    first, *others = leaf_addresses((1, 1, 3))
    grades = {first: Grade(Outcome.TRUNCATED, None, "none", Evaluation(0.0, 0.0, ("cut off",)))}
    grades.update((leaf, grade_of(1)) for leaf in others)
    tree = tree_of("q1", (1, 1, 3), {first: FinishReason.LENGTH})
    spec = spec_of().model_copy(update={"credit": CreditSpec(truncated="unknown")})
    version = publish([value_tree(tree, grades, spec.credit)], spec, PROVENANCE, Settings().datasets_dir)
    text = explain(version, "q1/0").text
    assert (text.leaves[0].outcome, text.leaves[0].reward) == ("truncated", None)
    assert text.arithmetic == "1.00 = (1 + 1) / 2 known of 3 leaves, above 0.5: positive"


def test_a_pair_tells_its_sibling_its_margin_and_how_sure_it_is(version: DatasetVersion) -> None:
    explained, row = explain(version, "dpo-verifier/q1/0.0-0.1"), version.dpo("verifier").iloc[0]
    assert (explained.text.node_id, explained.sibling and explained.sibling.node_id) == ("0.0", "0.1")
    assert (explained.margin, explained.confidence) == (row["margin"], row["confidence"])
    assert (explained.text.value_low, explained.text.value_high) == pytest.approx((0.2077, 0.9385), abs=1e-4)


def test_a_node_tells_every_row_it_could_give(version: DatasetVersion) -> None:
    explained = explain(version, "q1/0.1")
    assert (explained.file, explained.decision) == ("trajectories.parquet", None)
    assert {each.row_id: each.kept for each in explained.related} == {
        "sft-verifier/q1/0.1": False,
        "kto-verifier/q1/0.1": True,
        "dpo-verifier/q1/0.0-0.1": True,
        "dpo-verifier/q1/0.2-0.1": True,
    }


@pytest.mark.parametrize(
    ("row_id", "reason"),
    [
        ("sft-verifier/q1/0.1", "no candidate: labelled negative, and sft takes only what is labelled positive"),
        ("sft-refiner/q1/2.2.0", "no candidate: 2.2.0 has no label, as its grade is unknown"),
        ("dpo-verifier/q1/2.0-2.1", "no candidate: both are labelled negative; a pair needs one of each"),
        (
            "dpo-verifier/q1/0.1-0.0",
            "no candidate: 0.0 is the one labelled positive; the pair is dpo-verifier/q1/0.0-0.1",
        ),
        ("dpo-generator/q1/0-2", "left out by generator_dpo: [dataset] generator_dpo is false"),
    ],
)
def test_a_candidate_that_is_not_there_says_why(version: DatasetVersion, row_id: str, reason: str) -> None:
    assert why(version, row_id) == reason


@pytest.mark.parametrize(
    ("row_id", "dataset", "reason"),
    [
        ("dpo-generator/q1/0-2", {"generator_dpo": True, "min_margin": 0.5},
         "left out by min_margin: a margin of 0.305556, and min_margin = 0.5"),
        ("dpo-verifier/q1/0.0-0.1", {"min_confidence": 0.95},
         "left out by min_confidence: a confidence of 0.9286, and min_confidence = 0.95"),
        ("dpo-verifier/q1/0.0-0.1", {"max_pairs_per_question": 1},
         "left out by max_pairs_per_question: 1 of this question's pairs come before it, by margin, then confidence"),
        ("kto-generator/q1/0", {"balance": "labels"},
         "left out by balance: this question has more texts that are right, and only the best are kept"),
    ],
)  # fmt: skip
def test_a_gate_that_left_a_row_out_says_why(row_id: str, dataset: dict[str, Any], reason: str) -> None:
    version = published(mixed_tree("q1"), **dataset)
    decision = explain(version, row_id).decision
    assert decision is not None
    assert (decision.kept, decision.why) == (False, reason)
    assert f"left out by {decision.left_out_by}" in reason


def test_a_question_that_was_screened_out_says_why() -> None:
    screening = Screening(excluded={"q1": Exclusion("decontaminate", "test.jsonl:3")})
    version = publish([mixed_tree("q1")], spec_of(), replace(PROVENANCE, screening=screening), Settings().datasets_dir)
    reason = "left out by decontaminate: the question overlaps with test.jsonl:3, of the sets in decontaminate"
    assert why(version, "sft-verifier/q1/0.0") == reason


def test_a_row_of_the_validation_split_is_found_in_its_file() -> None:
    version = published(mixed_tree("q1"), validation=0.99)
    explained = explain(version, "sft-verifier/q1/0.0")
    assert explained.file == "sft/verifier.validation.parquet"
    assert explained.decision is not None
    assert explained.decision.kept


def test_a_text_that_is_not_whole_says_what_it_is() -> None:
    version = published(valued(tree_of("q1", (1, 1, 2), {Address((0, 0, 0)): FinishReason.LENGTH}), [1, 0]))
    assert why(version, "sft-refiner/q1/0.0.0") == "left out by flawed_texts: 0.0.0 is truncated"
    assert why(version, "dpo-refiner/q1/0.0.0-0.0.1") == "left out by flawed_texts: 0.0.0 is truncated"


def test_a_prompt_that_no_row_holds_comes_from_the_same_prompt_files() -> None:
    prompts = load_prompts("general")
    tree = valued(tree_of("q1", (1, 1, 1)), [None])
    provenance = replace(PROVENANCE, prompts=prompts.digests)
    version = publish([tree], spec_of(), provenance, Settings().datasets_dir)
    explained = explain(version, "q1/0.0")
    seen = prompts.messages(Role.VERIFIER, question="What is q1?", solution="generator 0 on q1")
    assert [(turn.role, turn.content) for turn in explained.prompt or ()] == [(*turn,) for turn in seen]
    assert "prompt set 'general'" in explained.prompt_from


def test_a_prompt_is_not_made_up_from_files_that_changed() -> None:
    version = publish([valued(tree_of("q1", (1, 1, 1)), [None])], spec_of(), Provenance({}), Settings().datasets_dir)
    explained = explain(version, "q1/0.0")
    assert explained.prompt is None
    assert explained.prompt_from == "no row of 0's children was kept, and prompt set 'general' has changed since"


@pytest.mark.parametrize(
    ("row_id", "problem"),
    [
        ("q18/2.0", "has no 'q18/2.0'; near: q1/2.0, q17/2.0"),
        ("sft-refinr/q1/0.0.0", "near: sft-refiner/q1/0.0.0"),
        ("sft-refiner/q9/0.0.0", "near: sft-refiner/q1/0.0.0"),
        ("sft-verifier/q1/0.7", "near: sft-verifier/q1/0."),
        ("sft-verifier/q1/0.0.1", "near: sft-refiner/q1/0.0.1"),
        ("dpo-refiner/q1/0.0.0-0.0.7", "near: dpo-refiner/q1/0.0.0-0.0."),
        ("dpo-refiner/q1/0.0.0", "near: dpo-refiner/q1/0.0.0-0.0."),
        ("dpo-refiner/q1/0.0.0-0.1.1", "near: dpo-refiner/q1/0.0.0-0.0."),
        ("dpo-refiner/q1/0.0.0-0.0.0", "near: dpo-refiner/q1/0.0.0-0.0."),
        ("q1/7", "near: q1/"),
        ("q1", "'q1' is a question of arith@v1; its tree: malt show arith@v1 q1; one of its nodes: q1/0.0.0"),
        ("nonsense", "an id reads like sft-verifier/QUESTION_ID/2.0"),
        ("sft-refiner/q1/", "an id reads like"),
        ("", "an id reads like"),
    ],
)  # fmt: skip
def test_an_id_that_nothing_has_names_near_ones(version: DatasetVersion, row_id: str, problem: str) -> None:
    with pytest.raises(VersionError) as caught:
        explain(version, row_id)
    assert problem in str(caught.value)


def test_a_question_without_a_tree_says_what_failed() -> None:
    trees = [valued(incomplete_tree_of("q0"), {}), mixed_tree("q1")]
    version = publish(trees, spec_of(), PROVENANCE, Settings().datasets_dir)
    with pytest.raises(VersionError, match="generator below the root: HTTP 500 from the provider, 5 attempts"):
        explain(version, "q0/0")


def test_a_file_that_is_not_readable_is_named(version: DatasetVersion) -> None:
    (version.path / "trajectories.parquet").write_bytes(b"PAR1")
    with pytest.raises(VersionError, match=r"trajectories\.parquet cannot be read .*; try: malt verify"):
        explain(version, "q1/0")


def test_the_command_prints_the_whole_story(version: DatasetVersion, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["explain", "arith", "dpo-verifier/q1/0.0-0.1"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "dpo-verifier/q1/0.0-0.1  arith@v1, dpo/verifier.parquet",
        "reference  4",
        "  user      q1 below 0",
        "chosen: verifier 0.0 by served-model, ok",
        "  0.67 = (1 + 0 + 1) / 3 leaves, above 0.5: positive; 95 % interval 0.21 to 0.94",
        "rejected: verifier 0.1 by served-model, ok",
        "margin 0.6667; the order is right with probability 0.9286",
        "  kto-verifier/q1/0.1  kept (past 7 gates)",
    ):
        assert f"{line}\n" in printed


def test_the_command_prints_one_json_object(version: DatasetVersion, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["explain", "arith@v1", "sft-refiner/q1/0.0.0", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == explain(version, "sft-refiner/q1/0.0.0").model_dump(mode="json")
    assert printed["prompt"][0] == {"role": "system", "content": "You are the refiner."}


def test_the_command_refuses_an_unknown_id(version: DatasetVersion, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["explain", "arith", "q1/9"]) == 2
    assert "error: arith@v1 has no 'q1/9'; near: q1/" in capsys.readouterr().err
