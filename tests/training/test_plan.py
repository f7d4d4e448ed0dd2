"""`malt train --plan` without the packages that training needs."""

import json
import sys

import pyarrow.parquet as pq
import pytest

from malt.cli.main import exit_code
from malt.datasets.version.dataset_version import DatasetVersion
from tests.hub import OWNER, Hub
from tests.hub import hub as hub

WITHOUT_TORCH = "before it can run: malt train needs torch"


@pytest.fixture(autouse=True)
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)


def test_the_plan_counts_rows_and_steps_and_fetches_no_base(
    version: DatasetVersion, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["train.sft.batch_size=4", "train.sft.epochs=3", f"train.base={OWNER}/huge"]
    assert (
        exit_code(["train", version.reference, "--plan", "--json", *(each for s in settings for each in ("-s", s))])
        == 0
    )
    said = capsys.readouterr()
    told = json.loads(said.out)
    rows = pq.read_metadata(version.path / "sft/refiner.parquet").num_rows
    refiner = told["roles"]["refiner"]["stages"]["sft"]
    assert (refiner["rows"], refiner["steps"]) == (rows, 3 * -(-rows // 4))
    lengths = version.manifest.lengths["refiner"]["sft"]
    assert (refiner["longest"], refiner["tokens"]) == (lengths.longest, round(rows * lengths.mean))
    assert "torch" in told["missing"]
    assert WITHOUT_TORCH in said.err
    assert hub.requests == []


def test_the_plan_is_a_table_that_names_missing_packages(
    version: DatasetVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["train", version.reference, "--plan"]) == 0
    said = capsys.readouterr()
    assert "tokens as the dataset counted them; memory, time" in said.out
    assert WITHOUT_TORCH in said.err


def test_a_version_without_rows_is_refused(version: DatasetVersion, capsys: pytest.CaptureFixture[str]) -> None:
    none = ["-s", "train.generator=dpo", "-s", "train.verifier=[]", "-s", "train.refiner=[]"]
    assert exit_code(["train", version.reference, "--plan", *none]) == 1
    assert "has no row for any stage that [train] names" in capsys.readouterr().err
