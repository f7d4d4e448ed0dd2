"""Where batches run: threads, processes and Dask workers make the same dataset, each within its share of the limits."""

import multiprocessing
from pathlib import Path

import pytest

from tests.configs import REQUESTS, write_config
from tests.flows.conftest import Malt
from tests.providers import ScriptedProvider

REFERENCE = "threads"


def digest(malt: Malt, config: Path, runner: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Run in a data folder of its own, grading by mathematics, and return what came out."""
    monkeypatch.setenv("MALT_DATA_DIR", str(folder / runner))
    one_endpoint = [f"roles.{role}.model=openai/one" for role in REQUESTS]
    chosen = [f"run.task_runner={runner}", "evaluator.kind=math", "limits.max_in_flight=4", *one_endpoint]
    ran = malt("run", config, *(f"--set={choice}" for choice in chosen))
    assert (ran.code, ran.stderr, ran.summary.requests) == (0, "", 13 * 4)
    assert ran.summary.outcomes["right"] > 0
    return ran.summary.content_sha256


@pytest.mark.parametrize("runner", ["processes", "dask"])
def test_every_task_runner_makes_the_same_dataset(
    malt: Malt, runner: str, tmp_path: Path, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    if runner == "dask":
        pytest.importorskip("prefect_dask")
    provider.latency_s = 0.05
    config = write_config(tmp_path, provider, questions=4)
    spread = digest(malt, config, runner, tmp_path, monkeypatch)
    assert provider.max_in_flight <= 4
    assert multiprocessing.active_children() == []
    assert spread == digest(malt, config, REFERENCE, tmp_path, monkeypatch)
