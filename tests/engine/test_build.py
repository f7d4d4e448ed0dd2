"""Building a version from the store alone, and the manifest's accounts of judge, diagnosis and graders."""

import json
from pathlib import Path

import pytest

from malt.cli.main import exit_code
from malt.config.questions import QuestionSource
from malt.config.roles import Role
from malt.config.spec import CreditSpec, EvaluatorSpec, RunSpec
from malt.datasets.check.verify import verify
from malt.datasets.version.dataset_version import DatasetVersion
from malt.engine.build import Built, build, summarise
from malt.engine.job import read_job
from malt.engine.run import Filled
from malt.llm.budget import Tally
from malt.prompts import SLOTS
from malt.trees.pipeline import NOTHING_MISSING, Shortfall
from malt.trees.tree import FailedBranch
from tests import mishaps, providers
from tests.asking import asked_directly
from tests.providers import ScriptedProvider
from tests.published import PROVENANCE, mixed_tree, publish
from tests.published import spec_of as published_spec
from tests.specs import spec_of, write_questions


@pytest.fixture
def spec(tmp_path: Path, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> RunSpec:
    """Spec with two sums; answers that are not exactly the reference go to the judge."""
    monkeypatch.setenv("TEST_KEY", "key")
    judge = EvaluatorSpec(kind=("exact", "llm"), model="openai/judge", api_base=provider.url, api_key_env="TEST_KEY")
    return spec_of(provider, write_questions(tmp_path), samples=2).model_copy(update={"evaluator": judge})


def assembled(spec: RunSpec) -> Built:
    """Try every request, then build the version."""
    return build(asked_directly(spec))


def version_of(spec: RunSpec) -> DatasetVersion:
    version = assembled(spec).version
    assert version is not None
    return version


def test_the_judge_s_completions_are_counted_once_though_equal_answers_share_them(
    spec: RunSpec, provider: ScriptedProvider
) -> None:
    provider.script = lambda asked, sample: (
        providers.judgement(0.9) if asked.model == "judge" else f"Final Answer: about {sample}"
    )
    manifest = version_of(spec).manifest
    assert len(provider.requests_to("judge")) == 4
    assert manifest.tokens[Role.EVALUATOR].completions == 4
    assert manifest.tokens[Role.EVALUATOR].prompt_tokens
    assert manifest.cost[Role.EVALUATOR].known == 0


def test_the_judge_of_a_tree_that_is_not_published_is_not_counted(spec: RunSpec, provider: ScriptedProvider) -> None:
    provider.faults = mishaps.when(
        lambda asked: asked.model == "refiner-model" and "What is 1 + 10?" in asked.prompt, mishaps.context_overflow()
    )
    version = version_of(spec)
    judged = version.trajectories.query("grader == 'llm'")
    assert version.manifest.counts.complete == 1
    assert version.manifest.tokens[Role.EVALUATOR].completions == judged["text"].nunique()


def test_without_a_judge_there_is_none_to_account_for(spec: RunSpec) -> None:
    exact = spec.model_copy(update={"evaluator": EvaluatorSpec(kind=("number",))})
    assert Role.EVALUATOR not in version_of(exact).manifest.cost


def test_a_cascade_s_version_tells_who_graded_and_compares_like_with_like(spec: RunSpec) -> None:
    version = version_of(spec)
    diagnostics, rows = version.manifest.diagnostics, version.trajectories
    assert verify(version) == []
    assert diagnostics.graders == ("exact",)
    assert diagnostics.graded_by == rows["grader"].value_counts().to_dict()
    assert rows.query("role == 'verifier'")["own_outcome"].isna().all()
    for role, accuracy in (("generator", diagnostics.generator), ("refiner", diagnostics.refiner)):
        own = rows[rows["role"] == role]["own_outcome"].value_counts()
        assert accuracy.right == own.get("right", 0)
        assert accuracy.right + accuracy.wrong + accuracy.unknown == own.sum()


def test_assembling_again_gives_the_same_version(spec: RunSpec) -> None:
    first = version_of(spec)
    again = build(read_job(spec)).version
    assert again is not None
    assert (again.created, again.path) == (False, first.path)


def test_a_run_s_summary_says_who_graded(spec: RunSpec) -> None:
    job = asked_directly(spec)
    built = build(job)
    assert built.version is not None
    summary, version = summarise(job, Filled(NOTHING_MISSING, Tally()), built, 1.0), built.version
    assert summary.graded_by == version.manifest.diagnostics.graded_by
    assert f"{summary.graded_by['exact']} exact" in summary.markdown


def test_show_tells_the_diagnostics_and_what_was_left_out(
    spec: RunSpec, provider: ScriptedProvider, capsys: pytest.CaptureFixture[str]
) -> None:
    provider.script = lambda asked, sample: (
        providers.judgement(0.1) if asked.model == "judge" else f"Final Answer: {10 + sample}"
    )
    dataset = spec.dataset.model_copy(update={"max_pairs_per_question": 1})
    version = version_of(spec.model_copy(update={"dataset": dataset}))
    assert exit_code(["show", str(version.path)]) == 0
    shown = capsys.readouterr().out
    assert "by exact" in shown
    assert "flips" in shown
    assert "dpo/refiner     2 of 8 candidates kept; left out: 6 max_pairs_per_question" in shown
    assert exit_code(["show", "--json", str(version.path)]) == 0
    assert json.loads(capsys.readouterr().out)["diagnostics"] == version.manifest.diagnostics.model_dump(mode="json")


RECORDED = "fc7133970c0613f172f8638f61bd0b099937cfced6a3f6056d576bc660db50d1"
"""Digest of two sums' trajectories, recorded when every branch was a task and every row a dictionary."""


def test_a_version_s_rows_have_the_recorded_digest(spec: RunSpec, tmp_path: Path, provider: ScriptedProvider) -> None:
    prompts = tmp_path / "prompts"
    for role, slots in SLOTS.items():
        folder = prompts / role.value
        folder.mkdir(parents=True)
        (folder / "system.md").write_text(f"You are the {role.value}.")
        (folder / "user.md").write_text("\n".join(f"{slot}: {{{{{slot}}}}}" for slot in sorted(slots)))
    provider.script = lambda asked, sample: (
        providers.judgement(0.75)
        if asked.model == "judge"
        else f"{asked.model} says {sample}.\nFinal Answer: {sample + 10}"
    )
    version = version_of(spec.model_copy(update={"prompts": str(prompts)}))
    assert version.manifest.files["trajectories.parquet"].rows_sha256 == RECORDED


# What a run's summary says of its end.

FAILED = Shortfall((FailedBranch("q1", "0", Role.VERIFIER, "it is down"),), None)
STOPPED = Shortfall((), "the budget is spent")


@pytest.mark.parametrize(
    ("shortfall", "code", "said"),
    [
        (NOTHING_MISSING, 1, "no version: the store has no whole tree of 3 questions"),
        (FAILED, 1, "1 failed branches, 2 of 3 questions complete"),
        (STOPPED, 3, "stopped: the budget is spent; 0 of 3 questions complete"),
    ],
)
def test_a_run_without_a_version_has_failed(tmp_path: Path, shortfall: Shortfall, code: int, said: str) -> None:
    questions = QuestionSource(source=str(write_questions(tmp_path, 3)), format="gsm8k")
    job = read_job(RunSpec(name="sums", questions=questions, evaluator=EvaluatorSpec(kind=("number",))))
    summary = summarise(job, Filled(shortfall, Tally()), None, 1.0)
    assert summary.exit_code == code
    assert summary.sentence.startswith(said)


def test_a_run_whose_version_is_not_made_latest_has_failed_and_says_why(tmp_path: Path) -> None:
    spec = published_spec().model_copy(update={"credit": CreditSpec(max_unknown=0)})
    version = publish([mixed_tree("q1")], spec, PROVENANCE, tmp_path)  # one of its leaves has an unknown grade
    questions = QuestionSource(source=str(write_questions(tmp_path, 1)), format="gsm8k")
    job = read_job(RunSpec(name="arith", questions=questions, evaluator=EvaluatorSpec(kind=("number",))))
    summary = summarise(job, Filled(NOTHING_MISSING, Tally()), Built(version, ()), 1.0)
    assert summary.exit_code == 1
    assert summary.unknown == {"the judge's reply could not be read": 1}
    assert summary.sentence.startswith("arith@v1 was not made latest: the grade of 1 of 27 leaves is unknown")
    assert summary.suspicions
    assert "suspicious: the grade of 1 of 27 leaves is unknown" in summary.markdown
