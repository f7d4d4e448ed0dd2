"""Specs and question files for tests, with a scripted provider as the endpoint."""

import json
from pathlib import Path

from malt.config.questions import QuestionSource
from malt.config.roles import Roles, RoleSpec
from malt.config.spec import EvaluatorSpec, RunSpec
from tests.providers import ScriptedProvider


def write_questions(folder: Path, count: int = 2) -> Path:
    """Write sums in GSM8K's format; question i asks for `i + 10`."""
    path = folder / "questions.jsonl"
    rows = [{"question": f"What is {i} + 10?", "answer": f"We add.\n#### {i + 10}"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def role_of(provider: ScriptedProvider, model: str, samples: int = 3) -> RoleSpec:
    return RoleSpec(model=f"openai/{model}", api_base=provider.url, api_key_env="TEST_KEY", samples=samples, seed=7)


def spec_of(provider: ScriptedProvider, questions: Path, samples: int = 3) -> RunSpec:
    """Return a spec with a model of its own for each role, to count requests by role; leaves are graded as numbers."""
    roles = {role: role_of(provider, f"{role}-model", samples) for role in ("generator", "verifier", "refiner")}
    return RunSpec(
        name="sums",
        questions=QuestionSource(source=str(questions), format="gsm8k"),
        roles=Roles(**roles),
        evaluator=EvaluatorSpec(kind=("number",)),
    )
