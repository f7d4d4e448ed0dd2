"""The trees of `benchmarks.bare_loop` with Curator; started by `python -m benchmarks.throughput --rivals FOLDER`.

One `LLM` for each role, called one after another. It reads a single choice of a response, so siblings are separate
rows and requests (three times the requests of the others). Its cache is in an empty folder.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import litellm

TOKENIZERS = Path(litellm.__file__).parent / "litellm_core_utils" / "tokenizers"  # otherwise Curator downloads one
os.environ |= {"TELEMETRY_ENABLED": "false", "OPENAI_API_KEY": "none", "TIKTOKEN_CACHE_DIR": str(TOKENIZERS)}

from bespokelabs import curator  # noqa: E402 - reads the environment

SAMPLES = 3


class Role(curator.LLM):  # type: ignore[misc]  # in an environment of its own
    """One role; its prompt is filled with the texts of the parent's row."""

    folder: Path
    output: str

    def prompt(self, row: dict[str, str]) -> list[dict[str, str]]:
        """Fill the role's prompt."""
        text = (self.folder / "user.md").read_text()
        for slot, value in row.items():
            text = text.replace("{{" + slot + "}}", value)
        system = (self.folder / "system.md").read_text()
        return [{"role": "system", "content": system}, {"role": "user", "content": text}]

    def parse(self, row: dict[str, str], response: str) -> list[dict[str, str]]:
        """Add the reply to the row."""
        above = {name: value for name, value in row.items() if name != "sibling"}
        return [{**above, self.output: response}]


def main(url: str, questions: str, in_flight: str, file: str, prompts: str) -> None:
    """Read the questions, and write a line a leaf."""
    rows = [{"question": json.loads(line)["question"]} for line in Path(questions).read_text().splitlines()]
    limits = {"max_requests_per_minute": 1_000_000, "max_tokens_per_minute": 1_000_000_000}
    with tempfile.TemporaryDirectory() as cache:
        for name, output in [("generator", "solution"), ("verifier", "verification"), ("refiner", "refined")]:
            role = Role(
                model_name=name,
                backend="openai",
                generation_params={"max_tokens": 1024, "temperature": 0.3},
                backend_params={"base_url": url, "max_concurrent_requests": int(in_flight), **limits},
            )
            role.folder, role.output = Path(prompts) / name, output
            siblings = [{**row, "sibling": f"{sibling}"} for row in rows for sibling in range(SAMPLES)]
            rows = list(role(siblings, working_dir=cache).dataset)
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
