"""Config files for tests of the `malt` command: eight sums in GSM8K's format, with a model of its own for every role;
and a config with only a judge, for answers that come from elsewhere.
"""

from pathlib import Path

from tests.providers import ScriptedProvider
from tests.specs import write_questions

QUESTIONS = 8
REQUESTS = {"generator": 1, "verifier": 3, "refiner": 9}
"""Requests that one question needs, at three samples a node."""


def write_config(folder: Path, provider: ScriptedProvider, questions: int = QUESTIONS, judge: bool = False) -> Path:
    """Write a config and its questions; leaves are graded as numbers, or by a judge."""
    write_questions(folder, questions)
    path = folder / "sums.toml"
    roles = "\n".join(f"[roles.{role}]\n{model(role, provider)}samples = 3\n" for role in REQUESTS)
    evaluator = f'kind = "llm"\n{model("evaluator", provider)}' if judge else 'kind = "number"\n'
    run = '[run]\ntracking = "shard"\n'  # faster than tracking every branch, which other tests cover
    questions_table = '[questions]\nsource = "questions.jsonl"\n'
    path.write_text(f'name = "sums"\n\n{questions_table}\n{roles}\n[evaluator]\n{evaluator}\n{run}')
    return path


def model(role: str, provider: ScriptedProvider) -> str:
    """Return the config keys of a model named after its role."""
    return f'model = "openai/{role}"\napi_base = "{provider.url}"\napi_key_env = "TEST_KEY"\nseed = 7\n'


def write_judge_config(folder: Path, provider: ScriptedProvider) -> Path:
    """Write a config with a judge; its question file does not exist."""
    path = folder / "judge.toml"
    judge = f'model = "openai/judge"\napi_base = "{provider.url}"\napi_key_env = "TEST_KEY"\n'
    questions = '[questions]\nsource = "no-such-file.jsonl"\n'
    path.write_text(f'name = "judged"\n\n{questions}\n[evaluator]\nkind = "llm"\n{judge}')
    return path
