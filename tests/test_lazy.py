"""Packages that are slow to import, or optional, are imported only on use."""

import subprocess
import sys

import pytest

LIBRARY = "malt, malt.cli.main, malt.cli.training, malt.config.spec, malt.models.playing, malt.training.run"
TRAINING = {"torch", "transformers", "trl", "peft", "gguf"}


@pytest.mark.parametrize(
    ("imported", "slow"),
    [(LIBRARY, {*TRAINING, "litellm", "prefect"}), ("malt.cli.main, flows.generate", {*TRAINING, "pandas"})],
    ids=["the library and its command line", "what a run needs before its first request"],
)
def test_an_import_leaves_out_what_is_slow(imported: str, slow: set[str]) -> None:
    script = f"import sys, {imported}; print(sorted({slow} & sys.modules.keys()))"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"
