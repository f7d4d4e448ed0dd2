"""A provider with a planted answer for each question and chain, and a config of an evaluation on it.

Question i is `i + 10`. The bits of i say which of the generator's chains are right; wrong answers differ by chain.
"""

import json
import re
from pathlib import Path

from malt.config.loader import load_spec
from malt.config.spec import RunSpec
from tests.mishaps import Asked
from tests.providers import ScriptedProvider

QUESTIONS, CHAINS = 16, 3
FIRST = 100
"""Number of the first held-out question; those of the training file are lower."""


def is_right(question: int, chain: int) -> bool:
    """Whether the generator's answer is right."""
    return bool(question >> chain & 1)


def is_called_correct(question: int, chain: int) -> bool:
    """Whether the verifier calls the generator's answer correct: its verdict is false for every fifth answer."""
    return is_right(question, chain) != ((question + chain) % 5 == 0)


def ends_right(question: int, chain: int) -> bool:
    """Whether the refiner's answer is right: it differs from the generator's for every fourth answer."""
    return is_right(question, chain) != ((question + chain) % 4 == 0)


def answer(who: str, question: int, chain: int, right: bool) -> str:
    """Write an answer that names its question and chain, and who wrote it."""
    said = question + FIRST + 10 if right else 1_000 + chain
    return f"Chain {chain} of question {question}, by {who}.\n\nFinal Answer: {said}"


def script(asked: Asked, sample: int) -> str:
    """Answer as planted; a model called `better` is always right."""
    question = int(re.findall(r"What is (\d+) \+ 10", asked.prompt)[-1]) - FIRST
    chains = re.findall(r"Chain (\d+) of question", asked.prompt)
    if asked.model == "generator" or not chains:
        return answer(asked.model, question, sample, asked.model == "better" or is_right(question, sample))
    if asked.model.startswith("verifier"):
        verdict = "correct" if is_called_correct(question, int(chains[-1])) else "wrong"
        return f"The {asked.model} looked at chain {chains[-1]}.\nVerdict: {verdict}"
    return answer(
        asked.model, question, int(chains[-1]), asked.model == "better" or ends_right(question, int(chains[-1]))
    )


def write_evaluation(folder: Path, provider: ScriptedProvider, evaluate: str, questions: int = QUESTIONS) -> Path:
    """Write a config and its question files, and script the provider; `evaluate` is TOML below `[evaluate]`."""
    provider.script = script
    write_sums(folder / "train.jsonl", range(4))
    write_sums(folder / "heldout.jsonl", range(FIRST, FIRST + questions))
    roles = "".join(f"[roles.{role}]\n{model(role, provider)}" for role in ("generator", "verifier", "refiner"))
    path = folder / "planted.toml"
    path.write_text(
        f'name = "planted"\n[questions]\nsource = "train.jsonl"\n{roles}[evaluator]\nkind = "number"\n'
        f'[evaluate]\nquestions = {{ source = "heldout.jsonl" }}\n{evaluate}\n'
    )
    return path


def model(name: str, provider: ScriptedProvider) -> str:
    return f'model = "openai/{name}"\napi_base = "{provider.url}"\napi_key_env = "TEST_KEY"\nseed = 7\n'


def write_sums(path: Path, numbers: range) -> None:
    rows = ({"id": f"sum-{each}", "question": f"What is {each} + 10?", "answer": f"{each + 10}"} for each in numbers)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def planted_spec(folder: Path, provider: ScriptedProvider, evaluate: str = "", questions: int = QUESTIONS) -> RunSpec:
    return load_spec(write_evaluation(folder, provider, evaluate, questions))
