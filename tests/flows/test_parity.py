"""One engine: Python, the command line without Prefect, and the flows make the same version from the same answers."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from malt import TrainingDataGenerator
from malt.cli.runs import run_here
from malt.config.loader import load_spec
from malt.config.settings import Settings
from malt.datasets.manifest import Manifest
from malt.datasets.version.dataset_version import open_version
from malt.engine.job import read_job
from malt.engine.runner import run_job
from tests.batches import BatchProvider
from tests.batching import provider as provider
from tests.configs import write_config
from tests.flows.conftest import Malt
from tests.providers import answering, judgement

ROWS = [{"question": f"What is {i} + 10?", "ground_truth": f"{i + 10}"} for i in range(3)]
Way = Callable[[Malt, Path], object]


def by_python(_: Malt, config: Path) -> object:
    return asyncio.run(TrainingDataGenerator(spec=load_spec(config)).generate_and_evaluate(ROWS))


def by_command(_: Malt, config: Path) -> object:
    return run_here(run_job(read_job(load_spec(config))))


def by_flow(*options: str) -> Way:
    return lambda malt, config: malt("run", config, *options)


WAYS: dict[str, Way] = {
    "python": by_python,
    "command": by_command,
    "branch": by_flow("-s", "run.tracking=branch"),
    "shard": by_flow("-s", "run.tracking=shard"),
    "batch": by_flow("-s", "run.mode=batch", "-s", "run.tracking=auto"),
}


@pytest.fixture
def config(tmp_path: Path, provider: BatchProvider) -> Path:
    """Config of three sums, half of them judged; prices are unknown, so that batches cost as much as requests."""
    provider.script = lambda asked, sample: (
        judgement(len(asked.prompt) % 10 / 10) if asked.model == "evaluator" else answering({})(asked, sample)
    )
    path = write_config(tmp_path, provider, judge=True)
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    path.write_text(path.read_text().replace('kind = "llm"', 'kind = ["exact", "llm"]'))
    return path


def without_the_way(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest without the time, way and run of its making."""
    rest = manifest.model_dump(mode="json", exclude={"created_at", "files"})
    rest["config"].pop("run")
    for entry in rest["ledger"]:
        entry.pop("run")
    rows = {name: (file.rows, file.rows_sha256) for name, file in manifest.files.items() if file.rows_sha256}
    return rest | {"rows": rows}


def test_every_way_makes_the_same_manifest_usage_and_cost_included(
    malt: Malt, config: Path, provider: BatchProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = {}
    for name, way in WAYS.items():
        monkeypatch.setenv("MALT_DATA_DIR", str(tmp_path / name))
        way(malt, config)
        manifests[name] = without_the_way(open_version("sums", Settings().datasets_dir).manifest)
    assert manifests["python"]["tokens"]["evaluator"]["completions"] > 0
    assert manifests["python"]["counts"]["complete"] == len(ROWS)
    for name in WAYS:
        assert manifests[name] == manifests["python"], name
