"""Sums that all equal seven, a provider that is seldom right, and a config that trains a tiny model to answer seven.

The first round therefore has something to gain, and the second one has not.
"""

import json
from pathlib import Path

from tests.mishaps import Asked
from tests.providers import ScriptedProvider, draw

TRAIN, HELD_OUT, OTHERS = range(4), range(100, 116), range(200, 208)
"""Numbers in the questions of the three question files."""
BRANCHING, IN_FLIGHT, CHANCE = 2, 4, 0.3
PROMPTS = {
    "generator": "{{question}}",
    "verifier": "{{solution}}",
    "refiner": "{{solution}}",
    "evaluator": "{{answer}}",
}


def script(asked: Asked, sample: int) -> str:
    """Give the right answer with probability CHANCE, call every answer correct, and repeat a right solution."""
    if asked.model == "verifier":
        return f"{asked.prompt}\nVerdict: correct"
    is_right = asked.prompt.startswith("Final Answer: 7") or draw(asked, sample) < CHANCE
    return f"Final Answer: {7 if is_right else 9}"


def write_config(folder: Path, provider: ScriptedProvider, base: Path, improve: str = "") -> Path:
    """Write a config with the provider as every role in the first round; `improve` is TOML below `[improve]`."""
    provider.script = script
    for name, numbers in {"train": TRAIN, "heldout": HELD_OUT, "others": OTHERS}.items():
        _write_sums(folder / f"{name}.jsonl", numbers)
    _write_prompts(folder / "prompts")
    path = folder / "sevens.toml"
    roles = "".join(f"[roles.{role}]\n{_model(role, provider)}" for role in ("generator", "verifier", "refiner"))
    path.write_text(
        f'name = "sevens"\nprompts = "./prompts"\n[questions]\nsource = "train.jsonl"\n{roles}'
        '[evaluator]\nkind = "number"\n[dataset]\nduplicate_questions = "keep"\nmax_examples_per_question = 4\n'
        '[run]\ntracking = "shard"\n'
        f'[train]\nbase = "embedded/{base}"\nadapter = "full"\ndtype = "float32"\n'
        'verifier = []\nrefiner = "sft"\n'
        "[train.sft]\nlearning_rate = 0.02\nepochs = 14\nbatch_size = 8\n"
        '[evaluate]\nquestions = { source = "heldout.jsonl" }\nchains = 2\noverlap = "keep"\nmeasure = "ma"\n'
        f"[limits]\nmax_in_flight = {IN_FLIGHT}\n[improve]\n{improve}\n"
    )
    return path


def _model(name: str, provider: ScriptedProvider) -> str:
    place = f'model = "openai/{name}"\napi_base = "{provider.url}"\napi_key_env = "TEST_KEY"\nseed = 7\n'
    return f"{place}samples = {BRANCHING}\ntemperature = 0\nmax_tokens = 8\n"


def _write_sums(path: Path, numbers: range) -> None:
    rows = ({"id": f"sum-{each}", "question": f"What is 7 + {each} - {each}?", "answer": "7"} for each in numbers)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_prompts(folder: Path) -> None:
    """Write prompts of a few tokens, so that training takes seconds."""
    for role, text in PROMPTS.items():
        (folder / role).mkdir(parents=True, exist_ok=True)
        (folder / role / "system.md").write_text("")
        (folder / role / "user.md").write_text(text)
