"""What is slow to import, or not installed everywhere, is imported when it is used."""

import subprocess
import sys


def test_importing_the_library_and_its_command_line_imports_nothing_slow() -> None:
    script = """
import sys
import malt, malt.cli.main, malt.cli.training, malt.config.spec, malt.models.playing, malt.training.run
print(sorted({"torch", "transformers", "trl", "peft", "gguf", "litellm", "prefect"} & sys.modules.keys()))
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"
