"""`malt run` in batch mode, as a process that is killed, interrupted or does not wait: nothing is paid for twice."""

import os
import signal
from pathlib import Path

import pytest

from malt.cli.main import exit_code
from malt.config.settings import Settings
from malt.datasets.version.dataset_version import open_version
from tests.batches import BatchProvider
from tests.batching import provider as provider
from tests.configs import write_config
from tests.flows.conftest import Malt
from tests.flows.test_process import STOP_LIMIT_S, start
from tests.mishaps import hang

QUESTIONS = 3
BATCH = ("-s", "run.mode=batch", "-s", "run.tracking=auto")
LISTED = {"generator": "gpt-4o-mini", "verifier": "gpt-4o", "refiner": "gpt-4.1-nano"}
"""Models whose direct and batch prices LiteLLM knows."""


@pytest.fixture
def config(tmp_path: Path, provider: BatchProvider) -> Path:
    path = write_config(tmp_path, provider, QUESTIONS)
    text = path.read_text()
    for role, model in LISTED.items():
        text = text.replace(f'"openai/{role}"', f'"openai/{model}"')
    path.write_text(text)
    return path


def digest_of_direct_mode(malt: Malt, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str | None:
    with monkeypatch.context() as environment:
        environment.setenv("MALT_DATA_DIR", str(tmp_path / "direct"))
        return malt("run", config).summary.content_sha256


def test_a_run_in_batches_makes_the_same_dataset_at_half_the_price(
    malt: Malt, config: Path, provider: BatchProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batched = malt("run", config, *BATCH)
    assert (batched.code, batched.stderr) == (0, "")
    assert batched.summary.requests == len(provider.items) == 13 * QUESTIONS
    assert [len(provider.lines(batch)) for batch in provider.batches] == [QUESTIONS, 3 * QUESTIONS, 9 * QUESTIONS]
    ledger = open_version("sums", Settings().datasets_dir).manifest.ledger
    monkeypatch.setenv("MALT_DATA_DIR", str(tmp_path / "direct"))
    direct = malt("run", config)
    full_price = open_version("sums", Settings().datasets_dir).manifest.ledger
    assert batched.summary.content_sha256 == direct.summary.content_sha256
    assert batched.summary.cost_usd == pytest.approx((direct.summary.cost_usd or 0) / 2)
    assert [entry.cost.known_usd for entry in ledger] == pytest.approx(
        [entry.cost.known_usd / 2 for entry in full_price]
    )


def test_a_run_that_is_killed_between_levels_goes_on_and_pays_nothing_twice(
    malt: Malt, config: Path, provider: BatchProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.stages = ["in_progress", "completed"]
    provider.afterwards = lambda *which: hang() if which == ("create", 1) else None
    with start(config, *BATCH) as process:
        provider.wait_until_done("create", 1)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    ran = malt("run", config, *BATCH)
    assert ran.code == 0
    assert set(provider.paid.values()) == {1}
    assert len(provider.items) == len(set(provider.items)) == 13 * QUESTIONS
    assert ran.summary.content_sha256 == digest_of_direct_mode(malt, config, tmp_path, monkeypatch)


def test_ctrl_c_leaves_the_batch_where_it_is(malt: Malt, config: Path, provider: BatchProvider) -> None:
    provider.stages = ["in_progress"] * 1000
    with start(config, *BATCH) as process:
        provider.wait_until_done("look", 0)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=STOP_LIMIT_S)
    assert process.returncode == 130
    assert "run again to go on" in said
    provider.batches[0].stages = ["completed"]
    provider.stages = ["completed"]
    assert malt("run", config, *BATCH).code == 0
    assert len(provider.items) == 13 * QUESTIONS


def test_a_run_with_wait_switched_off_is_resumed_by_the_next_one(
    malt: Malt, config: Path, provider: BatchProvider
) -> None:
    provider.stages = ["in_progress", "completed"]
    codes = []
    for _ in range(10):
        ran = malt("run", config, *BATCH, "--no-wait")
        codes.append(ran.code)
        if ran.code != 4:
            break
        assert "run the same command again" in ran.stderr
        assert ran.summary.version is None
    assert codes == [4, 4, 4, 0]
    assert len(provider.items) == 13 * QUESTIONS
    assert (ran.summary.version, ran.summary.complete) == (1, QUESTIONS)


def test_a_direct_run_is_refused_items_in_flight(
    malt: Malt, config: Path, provider: BatchProvider, capfd: pytest.CaptureFixture[str]
) -> None:
    provider.stages = ["in_progress", "completed"]
    assert malt("run", config, *BATCH, "--no-wait").code == 4
    assert exit_code(["run", str(config)]) == 2
    said = capfd.readouterr().err
    assert "under way in batch batch_0" in said
    assert "malt batches --forget batch_0" in said
    assert provider.requests == []
    assert malt("run", config, *BATCH).code == 0


def test_the_judge_of_assemble_is_refused_items_in_flight(
    malt: Malt, config: Path, provider: BatchProvider, capfd: pytest.CaptureFixture[str]
) -> None:
    judge = (
        "-s",
        "evaluator.kind=llm",
        "-s",
        "evaluator.model=openai/judge",
        "-s",
        f"evaluator.api_base={provider.url}",
    )
    judged = (config, *judge, "-s", "evaluator.api_key_env=TEST_KEY")
    provider.later_stages = {3: ["in_progress"] * 3 + ["completed"]}
    assert malt("run", *judged, *BATCH, "--no-wait").code == 4
    assert exit_code(["assemble", *map(str, judged)]) == 2
    assert "under way in batch batch_3" in capfd.readouterr().err
    assert "judge" not in {asked.model for asked in provider.requests}
    assert malt("run", *judged, *BATCH).code == 0
