"""Prints the graders' throughput and error rates: `python -m benchmarks.grading`.

Throughput: replies of about 1 kB; `math` uses every process. Errors: answers planted by mechanical edits of
references, and the tables of cases in `tests/cases/`, by the kind of error they test.
"""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, get_args

from benchmarks.planted import planted
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
    """Return the seconds for one grade."""
    ground_truth, replies = REPLIES[kind]
    question = Question(question_id="q", question="Which?", ground_truth=ground_truth, choices=CHOICES)
    graders = graders_for(EvaluatorSpec(kind=(kind,)), None)
    await asyncio.gather(*[grade_one(question, replies, graders, n) for n in range(100)])
    started = time.perf_counter()
    await asyncio.gather(*[grade_one(question, replies, graders, n) for n in range(count)])
    return (time.perf_counter() - started) / count


async def grade_one(question: Question, replies: tuple[str, ...], graders: tuple[Grader, ...], number: int) -> None:
    """Grade reply `number`."""
    await grade(question, WORK + replies[number % len(replies)], graders)


class Judged(NamedTuple):
    """One answer: whether it is right, and whether it was graded right."""

    sort: str
    is_right: bool
    graded_right: bool


AT_ONCE = 64


async def judge_all(answers: Iterable[tuple[str, GraderKind, Question, str, bool]]) -> list[Judged]:
    """Grade answers, several at a time."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def judge(sort: str, kind: GraderKind, question: Question, text: str, is_right: bool) -> Judged:
        async with turns:
            graded = await grade(question, text, graders_for(EvaluatorSpec(kind=(kind,)), None))
        return Judged(sort, is_right, graded.outcome == "right")

    return await asyncio.gather(*(judge(*answer) for answer in answers))


def planted_answers() -> Iterable[tuple[str, GraderKind, Question, str, bool]]:
    """Yield the planted answers."""
    for each in planted():
        question = Question(question_id="q", question="What is it?", ground_truth=each.reference)
        yield each.edit, "math", question, f"So it is \\boxed{{{each.answer}}}.", each.is_right


def cases() -> Iterable[tuple[str, GraderKind, Question, str, bool]]:
    """Yield the tables' cases that have a single outcome."""
    for table in sorted((Path(__file__).parents[1] / "tests" / "cases").glob("grading_*.jsonl")):
        for case in map(json.loads, table.read_text("utf-8").splitlines()):
            choices = tuple(case.get("choices", ()))
            question = Question(question_id="q", question="?", ground_truth=case["ground_truth"], choices=choices)
            if isinstance(case["outcome"], str):
                yield case["kind"], case["kind"], question, case["text"], case["outcome"] == "right"


def print_errors(title: str, judged: list[Judged]) -> None:
    """Print the shares of wrong answers graded right and of right ones graded wrong, by sort and in total."""
    print(f"\n| {title} | wrong | graded right | right | not graded right |\n|---|---:|---:|---:|---:|")
    for sort in [*dict.fromkeys(each.sort for each in judged), "all"]:
        counts = Counter((each.is_right, each.graded_right) for each in judged if sort in (each.sort, "all"))
        wrong, right = counts[False, True] + counts[False, False], counts[True, True] + counts[True, False]
        shares = rate(counts[False, True], wrong), rate(counts[True, False], right)
        print(f"| {sort} | {wrong:,} | {shares[0]} | {right:,} | {shares[1]} |")


def rate(count: int, whole: int) -> str:
    """Format a count and its share."""
    return f"{count} ({100 * count / whole:.2f} %)" if whole else "-"


async def main() -> None:
    """Print the table."""
    print(f"processors: {os.cpu_count()}\n\n| kind | grades a second | microseconds a grade |\n|---|---:|---:|")
    for kind in get_args(GraderKind):
        if kind in REPLIES:
            seconds = await time_grader(kind, 2_000 if kind == "math" else 20_000)
            print(f"| `{kind}` | {1 / seconds:,.0f} | {seconds * 1e6:,.0f} |", flush=True)
    answers = list(planted_answers())
    started = time.perf_counter()
    print_errors("planted in `math`", await judge_all(answers))
    print(f"\n`math` on planted answers, no two alike: {len(answers) / (time.perf_counter() - started):,.0f} a second")
    print_errors("cases of", await judge_all(cases()))


if __name__ == "__main__":
    asyncio.run(main())
