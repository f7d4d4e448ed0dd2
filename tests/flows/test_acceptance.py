"""Requests and cost of a run by the provider's own count: first, repeated, changed, failing and healed."""

from collections import Counter
from pathlib import Path

import pytest

from malt.config.loader import load_spec
from malt.config.settings import Settings
from malt.datasets.check.verify import verify
from malt.datasets.manifest import write_manifest
from malt.datasets.version.dataset_version import open_version
from malt.llm.store.samples import Store
from malt.questions.question import read_questions
from tests import mishaps
from tests.configs import QUESTIONS, REQUESTS, write_config
from tests.flows.conftest import Malt
from tests.mishaps import Asked
from tests.providers import ScriptedProvider, answering

NODES = {"generator": 3, "verifier": 9, "refiner": 27}
"""Number of completions for one question at three samples a node."""
SHORT = tuple(f"--set=roles.{role}.max_tokens=40" for role in REQUESTS)
"""Overrides that cap completions near their real length, so that the worst case is near a tree's real cost."""
FAILING = ("What is 4 + 10?", "What is 6 + 10?")


@pytest.fixture
def config(tmp_path: Path, provider: ScriptedProvider) -> Path:
    return write_config(tmp_path, provider)


def requests(provider: ScriptedProvider, since: int = 0) -> Counter[str]:
    """Count the requests to the provider, by role."""
    return Counter(asked.model for asked in provider.requests[since:])


def times(count: int, figures: dict[str, int]) -> Counter[str]:
    return Counter({role: count * figure for role, figure in figures.items()})


def is_failing(asked: Asked) -> bool:
    return any(question in asked.prompt for question in FAILING)


def test_a_question_takes_13_requests_once_and_the_summary_says_so(
    malt: Malt, config: Path, provider: ScriptedProvider
) -> None:
    first = malt("run", config)
    assert (first.code, first.stderr) == (0, "")
    assert requests(provider) == times(QUESTIONS, REQUESTS)
    assert provider.completions == times(QUESTIONS, NODES)
    assert (first.summary.requests, first.summary.completions) == (13 * QUESTIONS, 39 * QUESTIONS)
    assert (first.summary.version, first.summary.complete, first.summary.failed_branches) == (1, QUESTIONS, 0)
    assert first.summary.prompt_tokens > 0
    for again in (malt("run", config), malt("assemble", config)):
        assert (again.code, again.summary.requests, again.summary.cached_completions) == (0, 0, 39 * QUESTIONS)
        assert (again.summary.content_sha256, again.summary.version) == (first.summary.content_sha256, 1)
        assert not again.summary.created
    assert provider.request_count == 13 * QUESTIONS


def test_a_judge_is_asked_once_for_every_answer_that_differs(
    malt: Malt, tmp_path: Path, provider: ScriptedProvider
) -> None:
    ran = malt("run", write_config(tmp_path, provider, questions=2, judge=True))
    judged = requests(provider).pop("evaluator")
    assert ran.summary.requests == 13 * 2 + judged
    assert 2 <= judged <= 27 * 2
    assert sum(ran.summary.outcomes.values()) == 27 * 2


def test_a_changed_config_requests_only_new_samples_and_makes_a_version(
    malt: Malt, config: Path, provider: ScriptedProvider
) -> None:
    first, asked = malt("run", config).summary, provider.request_count
    stricter = malt("run", config, "-s", "credit.threshold=0.8")
    assert provider.request_count == asked
    assert (stricter.code, stricter.summary.version, stricter.summary.created) == (0, 2, True)
    assert stricter.summary.content_sha256 != first.content_sha256

    swapped = malt("run", config, "-s", "roles.refiner.model=openai/other")
    assert requests(provider, since=asked) == {"other": 9 * QUESTIONS}
    assert (swapped.code, swapped.summary.version) == (0, 3)

    before = provider.completions.copy()
    grown = malt("run", config, *(f"--set=roles.{role}.samples=4" for role in REQUESTS))
    bought = provider.completions - before
    assert bought == times(QUESTIONS, {"generator": 1, "verifier": 16 - 9, "refiner": 64 - 27})
    assert grown.summary.completions == 45 * QUESTIONS
    assert grown.summary.cached_completions == 39 * QUESTIONS
    assert (grown.code, grown.summary.version) == (0, 4)


def test_failed_questions_are_left_out_and_a_successful_rerun_gives_the_undisturbed_dataset(
    malt: Malt, config: Path, provider: ScriptedProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.faults = mishaps.when(is_failing, mishaps.context_overflow())
    ran = malt("run", config)
    assert ran.code == 1
    assert (ran.summary.failed_branches, ran.summary.complete, ran.summary.version) == (2, QUESTIONS - 2, 1)
    assert ran.stderr.count("maximum context length") == 2
    assert {failure.question_id for failure in ran.summary.failures} == incomplete(ran.summary.path)
    assert len(reasons_in_store(ran.summary.path)) == 2

    provider.faults, asked = None, provider.request_count
    healed = malt("run", config)
    assert requests(provider, since=asked) == times(2, REQUESTS)
    assert (healed.code, healed.summary.complete, healed.summary.version) == (0, QUESTIONS, 2)

    monkeypatch.setenv("MALT_DATA_DIR", str(tmp_path / "whose refiner failed"))
    provider.faults = mishaps.when(
        lambda asked: is_failing(asked) and asked.model == "refiner", mishaps.context_overflow()
    )
    assert malt("run", config).summary.failed_branches == 18
    provider.faults = None
    partly = malt("run", config)
    monkeypatch.setenv("MALT_DATA_DIR", str(tmp_path / "that never failed"))
    digests = {each.summary.content_sha256 for each in (healed, partly, malt("run", config))}
    assert digests == {healed.summary.content_sha256}


def incomplete(version: str | None) -> set[str]:
    """Return the questions of a version whose trees are incomplete."""
    opened = open_version(str(version))
    grown = set(opened.trajectories["question_id"])
    listed = opened.questions
    assert set(listed[listed["complete"]]["question_id"]) == grown
    return set(listed[~listed["complete"]]["question_id"])


def reasons_in_store(version: str | None) -> set[str]:
    """Return the questions for which the store keeps a request's error."""
    with Store(Settings().store) as store:
        rows = store.rows(open_version(str(version)).questions["question_id"])
    failed = {row.question_id for row in rows.values() if row.error and row.response is None}
    assert all("maximum context length" in (row.error or "") for row in rows.values() if row.question_id in failed)
    return failed


def test_an_incomplete_run_may_publish_nothing(malt: Malt, config: Path, provider: ScriptedProvider) -> None:
    provider.faults = mishaps.when(is_failing, mishaps.context_overflow())
    ran = malt("run", config, "-s", "run.on_incomplete=fail")
    assert (ran.code, ran.summary.version, ran.summary.failed_branches) == (1, None, 2)
    assert not Settings().datasets_dir.exists()


def test_assemble_leaves_out_what_is_not_stored(malt: Malt, config: Path, provider: ScriptedProvider) -> None:
    malt("run", config, "--limit", 5)
    assembled = malt("assemble", config)
    assert (assembled.code, assembled.summary.complete) == (1, 5)
    assert assembled.summary.failed_branches == QUESTIONS - 5
    assert "not in the store" in assembled.stderr


def test_a_run_that_reaches_its_cap_stops_with_exit_3_and_goes_on_when_it_is_raised(
    malt: Malt, tmp_path: Path, provider: ScriptedProvider
) -> None:
    """Batches that have not started when the cap is reached must not start to spend."""
    provider.cost_usd = 0.001
    priced = [f"--set=roles.{role}.model=openai/gpt-4o-mini" for role in REQUESTS]
    config = write_config(tmp_path, provider, questions=300)
    stopped = malt("run", config, *priced, "-s", "limits.max_cost_usd=0.05")
    assert stopped.code == 3
    assert 0 < (stopped.summary.cost_usd or 0) <= 0.05
    assert provider.request_count == stopped.summary.requests <= 50
    assert "limits.max_cost_usd = 0.05 is reached" in stopped.stderr
    with Store(Settings().store) as store:
        stored = store.rows(question.question_id for question in read_questions(load_spec(config).questions))
    assert sum(row.response is not None for row in stored.values()) == stopped.summary.completions
    resumed = malt("run", config, *priced, "-s", "limits.max_cost_usd=1", "--limit", 5)
    assert (resumed.code, resumed.summary.complete) == (0, 5)


@pytest.mark.parametrize("tracking", ["shard", "branch"])
def test_a_budget_for_few_trees_makes_a_dataset_of_whole_ones(
    malt: Malt, config: Path, provider: ScriptedProvider, tracking: str
) -> None:
    """There are eight questions and tokens for about four: money goes into trees that are finished."""
    stopped = malt("run", config, "-s", "limits.max_tokens_total=20000", "-s", f"run.tracking={tracking}", *SHORT)
    assert stopped.code == 3
    assert "limits.max_tokens_total = 20000 is reached" in stopped.stderr
    used = stopped.summary.prompt_tokens + stopped.summary.completion_tokens
    assert used <= 20000
    assert stopped.summary.version == 1
    in_whole_trees = stopped.summary.complete * sum(REQUESTS.values())
    assert stopped.summary.requests - in_whole_trees < sum(REQUESTS.values()), "one tree at most is left half grown"
    assert used > 20000 * 0.7
    assert verify(open_version(Path(str(stopped.summary.path)))) == []


@pytest.mark.parametrize("tracking", ["shard", "branch"])
def test_adaptive_growth_publishes_a_version_that_verifies_and_full_growth_pays_the_difference(
    malt: Malt, config: Path, provider: ScriptedProvider, tracking: str
) -> None:
    provider.script = answering({}, right=0.9)
    tracked = ("-s", f"run.tracking={tracking}", "--limit", 4)
    ran = malt("run", config, "-s", "growth=adaptive", *tracked)
    assert (ran.code, ran.summary.complete, ran.summary.failed_branches) == (0, 4, 0)
    assert ran.summary.completions == provider.completions_sent < 4 * sum(NODES.values())
    assert ran.summary.cached_completions == 0
    version = open_version(Path(str(ran.summary.path)))
    assert verify(version) == []
    assert len(version.trajectories) == ran.summary.completions
    told = version.manifest.growth
    assert (told.mode, told.nodes, told.nodes_in_full) == ("adaptive", ran.summary.completions, 4 * 39)
    assert "biased" in told.values
    malt("run", config, *tracked)
    assert provider.completions_sent == 4 * sum(NODES.values())


def test_a_leaf_that_adaptive_growth_would_not_have_asked_for_is_found(
    malt: Malt, config: Path, provider: ScriptedProvider
) -> None:
    full = open_version(Path(str(malt("run", config, "--limit", 2).summary.path)))
    told = full.manifest.model_copy(
        update={"config": full.manifest.config | {"growth": {"mode": "adaptive", "confidence": 0.6}}}
    )
    write_manifest(told, full.path)
    assert any("its nodes are not those of its config" in problem for problem in verify(open_version(full.path)))
