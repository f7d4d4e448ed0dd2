"""The script of MALT's first description runs as written, except for the model's name and address."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from malt import LLMEvaluator
from malt.errors import PromptError
from malt.llm.request import Message
from tests.providers import ScriptedProvider

SCRIPT = """
import asyncio
from malt_implementation import TrainingDataGenerator

# Initialize
generator = TrainingDataGenerator(
    model_name="openai/m",
    branching_factor=2,
    use_llm_eval=True
)

# Generate training data
async def generate_data():
    training_data = [
        {
            "question": "What is the capital of France?",
            "ground_truth": "Paris is the capital of France."
        }
        # Add more examples...
    ]

    await generator.generate_and_evaluate(training_data)

# Run
asyncio.run(generate_data())
"""
FILES = {f"{role}_training.json" for role in ("generator", "verifier", "refiner")}


def test_the_script_leaves_the_three_files_in_the_working_folder(tmp_path: Path, provider: ScriptedProvider) -> None:
    script = SCRIPT.replace('model_name="openai/m"', f'model_name="openai/m", api_base={provider.url!r}')
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.glob("*.json")} == FILES
    held = json.loads((tmp_path / "generator_training.json").read_text())
    assert held["metadata"]["model"] == "openai/m"


QUESTION = ("Is it 7?", "7", "It is {answer} 8.")


class Pairs(LLMEvaluator):
    def _setup_prompt(self) -> None:
        self.eval_prompt = [
            ("system", 'Grade chemistry. Reply as {{"correctness_score": 0.5}}.'),
            ("human", "Q {question} R {ground_truth} A {answer}"),
        ]


class Slots(LLMEvaluator):
    def _setup_prompt(self) -> None:
        self.eval_prompt = 'Q {{ question }} R {{ground_truth}} A {{answer}} as {"score": 1}'


class Said:
    """A message with the attributes of LangChain's."""

    def __init__(self, type: str, content: str) -> None:  # noqa: A002 - LangChain's name
        self.type, self.content = type, content


class Template:
    """Stand-in for LangChain's ChatPromptTemplate, with the only method that is called."""

    def format_messages(self, **slots: str) -> list[Said]:
        return [Said("system", "Grade."), Said("human", f"Q {slots['question']} A {slots['answer']}")]


class LangChains(LLMEvaluator):
    def _setup_prompt(self) -> None:
        self.eval_prompt = Template()


@pytest.mark.parametrize(
    ("evaluator", "messages"),
    [
        (
            Pairs,
            [
                ("system", 'Grade chemistry. Reply as {"correctness_score": 0.5}.'),
                ("user", "Q Is it 7? R 7 A It is {answer} 8."),
            ],
        ),
        (Slots, [("user", 'Q Is it 7? R 7 A It is {answer} 8. as {"score": 1}')]),
        (LangChains, [("system", "Grade."), ("user", "Q Is it 7? A It is {answer} 8.")]),
    ],
)
def test_the_prompt_that_a_subclass_sets_is_what_the_judge_sees(
    evaluator: type[LLMEvaluator], messages: list[tuple[str, str]]
) -> None:
    assert evaluator().build_messages(*QUESTION) == tuple(Message(*each) for each in messages)


def test_a_prompt_that_cannot_be_filled_is_refused_when_the_judge_is_made() -> None:
    class Wrong(LLMEvaluator):
        def _setup_prompt(self) -> None:
            self.eval_prompt = [("human", "{reference}")]

    with pytest.raises(PromptError, match=r"eval_prompt cannot be filled: KeyError: 'reference'; .* \{ground_truth\}"):
        Wrong()
