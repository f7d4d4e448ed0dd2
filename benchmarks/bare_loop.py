"""Baseline written by hand: the same trees with stock `litellm.acompletion`, a semaphore and a JSONL file.

`python -m benchmarks.bare_loop URL QUESTIONS IN_FLIGHT FILE`. No store, no resume, no retries, no grading.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any, TextIO

import litellm

from malt.config.roles import PLAYERS, Role
from malt.prompts import PromptSet, load_prompts

SAMPLES = 3


class Bare:
    """A loop over `litellm.acompletion`."""

    def __init__(self, url: str, in_flight: int, out: TextIO) -> None:
        self.url, self.out = url, out
        self.room = asyncio.Semaphore(in_flight)
        self.prompts: PromptSet = load_prompts("math")

    async def ask(self, role: Role, **slots: str) -> list[str]:
        """Ask one role for all children of a node, and append them to the file."""
        messages = [message._asdict() for message in self.prompts.messages(role, **slots)]
        async with self.room:
            answer: Any = await litellm.acompletion(
                model="openai/m",
                messages=messages,
                n=SAMPLES,
                temperature=0.3,
                max_tokens=1024,
                api_base=self.url,
                api_key="none",
            )
        texts = [choice.message.content for choice in answer.choices]
        for text in texts:
            self.out.write(json.dumps({"role": role, **slots, "text": text}) + "\n")
        return texts

    async def tree(self, question: str) -> None:
        """Grow one question's tree."""
        generator, verifier, refiner = PLAYERS

        async def verify(solution: str) -> None:
            critiques = await self.ask(verifier, question=question, solution=solution)
            await asyncio.gather(*(refine(solution, critique) for critique in critiques))

        async def refine(solution: str, verification: str) -> None:
            await self.ask(refiner, question=question, solution=solution, verification=verification)

        await asyncio.gather(*(verify(solution) for solution in await self.ask(generator, question=question)))


async def grow(bare: Bare, questions: list[str]) -> None:
    """Grow all trees at once."""
    await asyncio.gather(*(bare.tree(question) for question in questions))


def main(url: str, questions: str, in_flight: str, file: str) -> None:
    """Read the questions and write the file."""
    asked = [json.loads(line)["question"] for line in Path(questions).read_text().splitlines()]
    with Path(file).open("w") as out:
        asyncio.run(grow(Bare(url, int(in_flight), out), asked))


if __name__ == "__main__":
    main(*sys.argv[1:])
