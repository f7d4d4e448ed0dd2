"""Real rounds: trees from a scripted provider, TRL on a tiny model, answers from the embedded server."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from glob import glob
from pathlib import Path

import pytest

from malt.config.roles import PLAYERS, Role
from malt.config.settings import Settings
from malt.datasets.version.dataset_version import open_version
from malt.errors import RunStopped
from malt.evaluation.version import open_evaluation
from malt.improvement.improve import improve
from malt.improvement.report import SUMMARY_FILE
from malt.improvement.rounds import Improvement
from malt.models.compare import explain_model
from malt.models.version import open_model
from tests import mishaps
from tests.improvement.sevens import BRANCHING, CHANCE, HELD_OUT, IN_FLIGHT, OTHERS, TRAIN, write_config
from tests.providers import ScriptedProvider
from tests.training.conftest import tiny as tiny

pytest.importorskip("trl", reason="the extra `train` is not installed")

ONE_ROUND = "rounds = 1\nclosing = false"
TREES = len(TRAIN) * (1 + BRANCHING + BRANCHING**2)
ANSWERS = len(HELD_OUT) * (1 + 2 * BRANCHING)
"""Number of requests for one system's chains; siblings share a request."""
VERIFIED = len(HELD_OUT) * BRANCHING
"""Most requests to the provider for a trained system: its verifier is not trained; equal texts share a request."""


def content(done: Improvement) -> list[str]:
    """Return the digests of the dataset, models and evaluation of the first round."""
    first = done.rounds[0]
    versions = open_version(first.dataset), open_model(first.models), open_evaluation(first.evaluation)
    return [version.manifest.content_sha256 for version in versions]


def test_a_better_candidate_is_kept_and_one_that_is_not_ends_the_rounds(
    tmp_path: Path, provider: ScriptedProvider, tiny: Path
) -> None:
    config = write_config(tmp_path, provider, tiny, '[improve.beside]\nothers = { source = "others.jsonl" }')
    done = improve(config, ["improve.rounds=3"])
    assert [each.judgement.is_kept for each in done.rounds] == [True, False]
    assert [each.players for each in done.rounds] == [None, "sevens@v1"]
    assert (done.best, done.stopped) == ("sevens@v1", "round 2 kept nothing, so it was the last")
    assert done.rounds[0].judgement.difference == pytest.approx((1 - CHANCE) ** 2, abs=0.25)
    manifest = open_model("sevens@v2").manifest
    assert [entry.version for entry in (*manifest.earlier, manifest.dataset)] == [1, 2]
    origin = explain_model(open_model("sevens@v2"))
    rows = [len(each.rows["sft/refiner"]) for each in (*origin.earlier, origin)]
    assert (len(rows), sum(rows)) == (2, manifest.roles[Role.REFINER].stages[0].rows)
    check_closing(done)
    check_report(done)
    check_nothing_is_done_again(config, done, provider)


def check_closing(done: Improvement) -> None:
    """Check the closing evaluations: each trained role was left out in turn, and other questions were asked too."""
    systems = open_evaluation(str(done.closing)).summary.systems
    assert [*systems] == ["untrained", "trained", "generator-untrained", "refiner-untrained"]
    assert systems["trained"].ma.accuracy == systems["generator-untrained"].ma.accuracy == 1.0
    assert (systems["untrained"].ma.accuracy or 0) < 0.9
    assert open_evaluation(done.beside["others"]).summary.questions == len(OTHERS)


def check_report(done: Improvement) -> None:
    """Check that the page has the evaluations' figures and no script."""
    page = Path(str(done.report)).read_text()
    accuracy = open_evaluation(done.rounds[0].evaluation).summary.systems["current"].ma.accuracy
    assert f"{100 * (accuracy or 0):.1f}" in page
    assert "Gain from training" in page
    assert "<script" not in page
    told = Improvement.model_validate_json(Path(str(done.report)).with_name(SUMMARY_FILE).read_bytes())
    assert told.rounds == done.rounds


def check_nothing_is_done_again(config: Path, done: Improvement, provider: ScriptedProvider) -> None:
    """Check that the same command repeats nothing, and that one more round continues from there."""
    asked = provider.request_count
    again = improve(config, ["improve.rounds=3"])
    assert (again.used.requests, again.used.completions, again.used.roles_trained) == (0, 0, 0)
    assert provider.request_count == asked
    assert (again.rounds, again.closing, again.beside) == (done.rounds, done.closing, done.beside)


IMPROVE = "import sys; from malt.improvement.improve import improve; improve(sys.argv[1], ['train.checkpoint_s=0'])"


def kill_when(is_time: Callable[[], bool], config: Path) -> None:
    """Improve in a separate process, and kill it and its training process once `is_time`."""
    with subprocess.Popen([sys.executable, "-c", IMPROVE, str(config)], start_new_session=True) as process:
        while not is_time():
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)


def stop_at_a_limit(config: Path, provider: ScriptedProvider, requests: int) -> None:
    """Improve until the provider refuses for lack of payment."""
    provider.faults = lambda _: mishaps.payment_required() if provider.request_count > requests else None
    with pytest.raises(RunStopped):
        improve(config)
    provider.faults = None


def test_a_stopped_or_killed_improvement_resumes_and_pays_and_trains_nothing_twice(
    tmp_path: Path, provider: ScriptedProvider, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Incomplete trees are not published, so the final versions equal those of an undisturbed run."""
    config = write_config(tmp_path, provider, tiny, ONE_ROUND)
    at_once, needed = improve(config), provider.request_count
    assert TREES + ANSWERS < needed <= TREES + ANSWERS + VERIFIED
    monkeypatch.setenv("MALT_DATA_DIR", str(tmp_path / "other"))
    provider.requests.clear()
    stop_at_a_limit(config, provider, TREES // 4)
    provider.latency_s = 0.05
    training = Settings().training_dir
    moments: list[Callable[[], bool]] = [
        lambda: provider.request_count >= 3 * TREES // 4,
        # `Path.glob` would fail where training removes an old checkpoint meanwhile
        lambda: bool(glob("*/refiner-*/sft/checkpoint-*/trainer_state.json", root_dir=training)),  # noqa: PTH207
        lambda: provider.request_count >= TREES + ANSWERS // 2,
        lambda: provider.request_count >= needed - IN_FLIGHT,
    ]
    for moment in moments:
        kill_when(moment, config)
    done = improve(config)
    assert content(done) == content(at_once)
    assert done.rounds == at_once.rounds
    assert done.used.roles_trained == 0
    most = needed + (1 + len(moments)) * IN_FLIGHT * len(PLAYERS)  # requests in flight are sent again
    assert needed <= provider.request_count <= most
