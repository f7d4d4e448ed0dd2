"""Sums that all come to seven, a provider that is right half of the time, and a tiny model that learns to say seven.

So a first round has something to gain, and a second one has not.
"""

import json
from pathlib import Path

from tests.mishaps import Asked
from tests.providers import ScriptedProvider, draw

SEVEN = "It is 7.\n\nFinal Answer: 7"
WRONG = "It is 9.\n\nFinal Answer: 9"
TRAINED, HELD_OUT = 3, 16
"""Questions of the two files."""


def script(asked: Asked, sample: int) -> str:
    """Answer rightly half of the time, and call everything correct."""
    if asked.model == "verifier":
        return f"Looked at in way {sample}.\nVerdict: correct"
    return SEVEN if draw(asked, sample) < 0.5 else WRONG


def write_config(folder: Path, provider: ScriptedProvider, base: Path, improve: str = "") -> Path:
    """Write a config whose roles the provider plays in the first round; `improve` is TOML below `[improve]`."""
    _write_sums(folder / "train.jsonl", range(TRAINED))
    _write_sums(folder / "heldout.jsonl", range(100, 100 + HELD_OUT))
    _write_sums(folder / "others.jsonl", range(200, 208))
    path = folder / "sevens.toml"
    roles = "".join(f"[roles.{role}]\n{_model(role, provider)}" for role in ("generator", "verifier", "refiner"))
    path.write_text(
        f'name = "sevens"\n[questions]\nsource = "train.jsonl"\n{roles}[evaluator]\nkind = "number"\n'
        f'[run]\ntracking = "shard"\n[train]\nbase = "embedded/{base}"\nadapter = "full"\ndtype = "float32"\n'
        'checkpoint_s = 0\nverifier = "sft"\nrefiner = "sft"\n'
        "[train.sft]\nlearning_rate = 0.01\nepochs = 8\nbatch_size = 4\nwarmup = 0\n"
        '[evaluate]\nquestions = { source = "heldout.jsonl" }\nchains = 2\noverlap = "keep"\nmeasure = "ma"\n'
        f"[improve]\n{improve}\n"
    )
    return path


def _model(name: str, provider: ScriptedProvider) -> str:
    place = f'model = "openai/{name}"\napi_base = "{provider.url}"\napi_key_env = "TEST_KEY"\nseed = 7\n'
    return f"{place}samples = 2\ntemperature = 0\nmax_tokens = 16\n"


def _write_sums(path: Path, numbers: range) -> None:
    rows = ({"id": f"sum-{each}", "question": f"What is 7 + {each} - {each}?", "answer": "7"} for each in numbers)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
