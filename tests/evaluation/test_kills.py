"""kill -9 in the middle of an evaluation: the next one continues and reaches the same digest."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from malt.evaluation.evaluate import evaluate
from malt.evaluation.version import list_evaluations
from malt.llm.client.session import close_sessions
from tests.evaluation.planted import CHAINS, QUESTIONS, write_evaluation
from tests.providers import ScriptedProvider

SYSTEMS = '[evaluate.systems.plain]\n[evaluate.systems.star]\ngenerator = { model = "openai/better" }\n'
KILLS = (10, 130)
"""Total number of requests after which each kill happens."""


def kill_after(requests: int, config: Path, provider: ScriptedProvider) -> None:
    """Evaluate in a separate process, and kill it once the provider has received so many requests."""
    command = "from malt.cli.main import main; main()"
    process = subprocess.Popen([sys.executable, "-c", command, "evaluate", str(config)], stdout=subprocess.DEVNULL)
    while provider.request_count < requests and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()


def test_a_killed_evaluation_costs_no_answer_and_changes_nothing(
    tmp_path: Path, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.latency_s = 0.05
    config = write_evaluation(tmp_path, provider, SYSTEMS + "[limits]\nmax_in_flight = 4\n")
    for requests in KILLS:
        kill_after(requests, config, provider)
    killed = evaluate(config)
    needed = QUESTIONS * 2 * (1 + 2 * CHAINS)
    in_flight = 4 * len({asked.model for asked in provider.requests})
    assert needed <= provider.request_count <= needed + in_flight * len(KILLS)  # requests in flight are sent again
    assert [version.number for version in list_evaluations().versions] == [1]
    close_sessions()
    monkeypatch.setenv("MALT_DATA_DIR", str(tmp_path / "other"))
    assert evaluate(config).manifest.content_sha256 == killed.manifest.content_sha256
