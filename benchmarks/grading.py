"""Prints what the graders take: `python -m benchmarks.grading`. Replies have about 1 kB; `math` uses every process."""

import asyncio
import os
import time
from typing import get_args

from malt.config.spec import EvaluatorSpec, GraderKind
from malt.grading.graders import Grader, grade, graders_for
from malt.questions.question import Question

WORK = "So she has 5 + 7 = 12 eggs. She sells them for $2 each and so on.\n" * 14
REPLIES: dict[GraderKind, tuple[str, tuple[str, ...]]] = {
    "exact": ("Paris", ("Final Answer: Paris", "Final Answer: Rome", "The answer is Paris.")),
    "contains": ("Paris", ("Final Answer: the city of Paris", "It is Rome.", "It is Paris.")),
    "number": ("18", ("Final Answer: $18 per day", "#### 17", "So she makes 18 dollars.")),
    "choice": ("B", ("Final Answer: (B)", "Final Answer: market", "The answer is C.")),
    "math": ("\\frac{3x}{2}", ("$\\boxed{1.5x}$", "$\\boxed{x\\sqrt{2}}$", "Final Answer: $\\frac{6x}{4}$")),
}
CHOICES = ("doctor", "bookstore", "market", "train station", "mortuary")


async def time_grader(kind: GraderKind, count: int) -> float:
    """Return the seconds that one grade takes."""
    ground_truth, replies = REPLIES[kind]
    question = Question(question_id="q", question="Which?", ground_truth=ground_truth, choices=CHOICES)
    graders = graders_for(EvaluatorSpec(kind=(kind,)), None)
    await asyncio.gather(*[grade_one(question, replies, graders, n) for n in range(100)])
    started = time.perf_counter()
    await asyncio.gather(*[grade_one(question, replies, graders, n) for n in range(count)])
    return (time.perf_counter() - started) / count


async def grade_one(question: Question, replies: tuple[str, ...], graders: tuple[Grader, ...], number: int) -> None:
    """Grade one of the replies."""
    await grade(question, WORK + replies[number % len(replies)], graders)


async def main() -> None:
    """Print the table."""
    print(f"processors: {os.cpu_count()}\n\n| kind | grades a second | microseconds a grade |\n|---|---:|---:|")
    for kind in get_args(GraderKind):
        if kind in REPLIES:
            seconds = await time_grader(kind, 2_000 if kind == "math" else 20_000)
            print(f"| `{kind}` | {1 / seconds:,.0f} | {seconds * 1e6:,.0f} |", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
