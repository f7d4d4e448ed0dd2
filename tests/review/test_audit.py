"""`malt audit`: a version's leaves graded again, and the resulting changes."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from malt.cli.main import exit_code
from malt.config.settings import Settings
from malt.config.spec import EvaluatorSpec, RunSpec
from malt.datasets.version.dataset_version import DatasetVersion
from malt.engine.python_api import TrainingDataGenerator
from malt.llm.request import FinishReason
from malt.trees.credit import ValuedTree
from malt.trees.tree import Tree
from tests.configs import write_judge_config
from tests.providers import ScriptedProvider
from tests.published import PROVENANCE, publish
from tests.specs import spec_of
from tests.strategies import addresses, node_of, question_of, valued

Audit = Callable[..., dict[str, Any]]

GRADED_BY_NUMBER = {"name": "sums", "questions": {"source": "questions.jsonl"}, "evaluator": {"kind": "number"}}
CUT = "cut off"


@pytest.fixture
def audit(capsys: pytest.CaptureFixture[str]) -> Audit:
    """Run `malt audit --json` and return its object."""

    def run(*arguments: str | Path) -> dict[str, Any]:
        code = exit_code(["audit", "--json", *map(str, arguments)])
        printed = capsys.readouterr()
        assert (code, printed.err) == (0, "")
        report: dict[str, Any] = json.loads(printed.out)
        return report

    return run


def tree_with(question_id: str, texts: Sequence[str], rewards: Sequence[float | None]) -> ValuedTree:
    """Return a tree of one generation, one critique and these refinements; the reference is 4."""
    nodes = {address: node_of(question_id, address) for address in addresses((1, 1, len(texts)))}
    leaves = [address for address in nodes if address.is_leaf]
    for address, text in zip(leaves, texts, strict=True):
        reason = FinishReason.LENGTH if text == CUT else FinishReason.STOP
        nodes[address] = node_of(question_id, address, reason, text)
    return valued(Tree(question_of(question_id), nodes), rewards)


def published(*trees: ValuedTree) -> DatasetVersion:
    return publish(trees, RunSpec.model_validate(GRADED_BY_NUMBER), PROVENANCE, Settings().datasets_dir)


@pytest.fixture
def version() -> DatasetVersion:
    """Version with a leaf that was graded right and that `exact` grades wrong, which changes the nodes above it."""
    return published(tree_with("q1", ["Final Answer: 4", "Final Answer: 4.0", "Final Answer: 5"], [1, 1, 0]))


@pytest.fixture
def judge_config(tmp_path: Path, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEST_KEY", "key")
    return write_judge_config(tmp_path, provider)


async def grown(provider: ScriptedProvider, **evaluator: Any) -> DatasetVersion:  # noqa: ANN401 - as the spec takes it
    """Grow two questions' trees on the scripted provider, and publish them as `sums`."""
    spec = spec_of(provider, Path("questions.jsonl"))
    graded = {"api_base": provider.url, "api_key_env": "TEST_KEY", **evaluator}
    spec = spec.model_copy(update={"evaluator": EvaluatorSpec.model_validate(graded)})
    questions = [{"question": f"What is {i} + 10?", "ground_truth": f"{i + 10}"} for i in range(2)]
    return await TrainingDataGenerator(spec=spec).generate_and_evaluate(questions)


def test_changes_are_counted_by_role(version: DatasetVersion, audit: Audit) -> None:
    changes = audit("sums", "--with", "exact")["changes"]["exact"]
    untouched = {"dpo_pairs": 0, "dpo_added": 0, "dpo_removed": 0}
    one_lost = {"nodes": 1, "labels_changed": 1, "sft_rows": 1, "sft_added": 0, "sft_removed": 1, **untouched}
    assert changes["generator"] == one_lost
    assert changes["verifier"] == one_lost
    assert changes["refiner"] == {
        "nodes": 3, "labels_changed": 1, "sft_rows": 2, "sft_added": 0, "sft_removed": 1,
        "dpo_pairs": 2, "dpo_added": 1, "dpo_removed": 1,
    }  # fmt: skip


def test_a_leaf_on_which_graders_differ_tells_what_each_read(version: DatasetVersion, audit: Audit) -> None:
    (leaf,) = audit("sums", "--with", "number,exact")["differences"]
    assert (leaf["question_id"], leaf["node_id"], leaf["reference"]) == ("q1", "0.0.1", "4")
    assert {name: said["outcome"] for name, said in leaf["grades"].items()} == {
        "version": "right", "number": "right", "exact": "wrong"
    }  # fmt: skip
    assert leaf["grades"]["exact"]["read"] == "4.0"
    assert leaf["grades"]["exact"]["said"] == "exact: read '4.0', expected '4'"


def test_every_two_graders_are_compared(version: DatasetVersion, audit: Audit) -> None:
    agreement = audit("sums", "--with", "number", "--with", "exact")["agreement"]
    assert {tuple(pair["graders"]): (pair["compared"], pair["agreement"], pair["kappa"]) for pair in agreement} == {
        ("version", "number"): (3, 1.0, 1.0),
        ("version", "exact"): (3, pytest.approx(2 / 3), pytest.approx(0.4)),
        ("number", "exact"): (3, pytest.approx(2 / 3), pytest.approx(0.4)),
    }


def test_each_kind_grades_by_itself(version: DatasetVersion, audit: Audit) -> None:
    alone = audit("sums", "--with", "exact")["outcomes"]["exact"]
    assert audit("sums", "--with", "number,exact")["outcomes"]["exact"] == alone


def test_unknown_and_cut_leaves_are_counted_and_not_compared(audit: Audit) -> None:
    published(tree_with("q1", ["Final Answer: 4", "Final Answer: 4", CUT], [1, None, 0]))
    report = audit("sums@v1", "--with", "number")
    (pair,) = report["agreement"]
    assert (report["leaves"], report["truncated"], pair["compared"], pair["unknown"]) == (3, 1, 1, 1)
    assert report["outcomes"]["number"] == {"right": 2, "wrong": 0, "unanswered": 0, "truncated": 1, "unknown": 0}
    assert report["differences"] == []


def test_a_grade_where_there_was_none_gives_a_label(audit: Audit) -> None:
    published(tree_with("q1", ["Final Answer: 5", "Final Answer: 4"], [0, None]))
    refiner = audit("sums@v1", "--with", "number")["changes"]["number"]["refiner"]
    assert (refiner["labels_changed"], refiner["sft_added"], refiner["dpo_added"]) == (1, 1, 1)


@pytest.mark.parametrize("kind", ["number", "llm"])
def test_the_graders_of_the_version_change_nothing_and_ask_nothing(
    kind: str, provider: ScriptedProvider, audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", "key")
    asyncio.run(grown(provider, kind=kind, model="openai/judge"))
    asked = provider.request_count
    report = audit("sums", "--with", kind)
    assert (report["requests"], provider.request_count, report["leaves"]) == (0, asked, 54)
    assert [pair["agreement"] for pair in report["agreement"]] == [1.0]
    for change in report["changes"][kind].values():
        assert not any(count for name, count in change.items() if name.endswith(("changed", "added", "removed")))


def test_no_role_is_asked_and_the_judge_once(
    provider: ScriptedProvider, judge_config: Path, version: DatasetVersion, audit: Audit
) -> None:
    first = audit("sums", "--with", "llm,exact", "--config", judge_config)
    assert first["requests"] == provider.request_count == len(provider.requests_to("judge")) == 3
    assert first["kinds"] == ["llm", "exact"]
    assert audit("sums", "--with", "llm", "--config", judge_config)["requests"] == 0


def test_a_version_is_not_changed(version: DatasetVersion, audit: Audit) -> None:
    before = {path: path.read_bytes() for path in version.path.rglob("*") if path.is_file()}
    audit("sums", "--with", "exact")
    assert {path: path.read_bytes() for path in version.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nothing", "--with", "exact"], "no dataset 'nothing'"),
        (["sums"], "Missing option '--with'"),
        (["sums", "--with", "vibes"], "--with vibes: no such kind of grader"),
        (["sums", "--with", "python"], "kind 'python' needs a config"),
    ],
)
def test_an_impossible_audit_is_refused(
    arguments: list[str], problem: str, version: DatasetVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["audit", *arguments]) == 2
    assert problem in capsys.readouterr().err


def test_a_damaged_version_is_named(version: DatasetVersion, capsys: pytest.CaptureFixture[str]) -> None:
    (version.path / "trajectories.parquet").write_bytes(b"PAR1")
    assert exit_code(["audit", "sums", "--with", "exact"]) == 2
    assert f"try: malt verify {version.path}" in capsys.readouterr().err


def test_people_get_tables_and_the_leaves_that_differ(
    version: DatasetVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["audit", "sums", "--with", "exact"]) == 0
    printed = capsys.readouterr().out
    assert "sums@v1: 3 leaves of 1 question, graded by number; graded again by exact" in printed
    assert "66.67 %  0.400  3" in printed
    assert "q1/0.0.1  reference '4'" in printed
