"""Prints the rows per 1,000 completions of adaptive and of full growth: `python -m benchmarks.adaptive [N]`.

Simulated models grow N trees (default 300) of the paper's shape through the real growth, grading and gates. `alike`:
every leaf is right with the same probability. `k = …`: a question's rate is drawn from Beta(k a, k (1 - a)) for the
accuracy a; `published`: with the k of a real model of similar accuracy (difficulty.py). `branches too`: a
generation's rate is drawn around its question's with k = 5, a critique's around that with k = 10. With `--embedded N`
the embedded model grows N of the quickstart's questions; both trees are made of the same answers, as in all rows.
"""

import argparse
import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from random import Random

from benchmarks.difficulty import fitted
from malt.config.loader import load_spec
from malt.config.questions import QuestionSource
from malt.config.roles import PLAYERS
from malt.config.settings import Settings
from malt.config.spec import EvaluatorSpec, GrowthSpec, RunSpec
from malt.datasets.rows.selection import measure_lengths, select, token_counter
from malt.engine.job import read_job
from malt.llm.client.completers import StoreCompleter, make_completer
from malt.llm.client.session import close_sessions, open_session
from malt.llm.request import Complete, Completion, CompletionRequest, FinishReason
from malt.prompts import PromptSet, load_prompts
from malt.questions.question import Question
from malt.trees.credit import ValuedTree
from malt.trees.growth import TreeInputs
from malt.trees.pipeline import ask_all, assess
from malt.trees.tree import Address

MODELS = {0.2: "Llama-3.1-8B-Instruct", 0.5: "Qwen2.5-7B-Instruct", 0.85: "DeepSeek-R1-Distill-Qwen-7B"}
"""Model whose k is used in `published`, by accuracy."""
BRANCHES = (5.0, 10.0)
FIRST = 9
"""Completions of the smallest tree that has a leaf below every generation."""
TRUTH = "42"
SPEC = RunSpec(
    name="simulated", questions=QuestionSource(source="simulated"), evaluator=EvaluatorSpec(kind=("number",))
)
HEAD = (
    "model",
    "completions",
    "requests",
    "pairs/1000",
    "",
    "ratio",
    "sft/1000",
    "",
    "ratio",
    "oracle",
    "kept",
    "labels",
    "lean",
)


@dataclass(frozen=True)
class Simulated:
    """A model whose refinements are right at a known rate; equal keys get equal answers."""

    accuracy: float
    k: float | None
    branches: tuple[float, ...] = ()

    async def __call__(self, request: CompletionRequest) -> Sequence[Completion]:
        """Answer at once."""
        return [self._answer(request, sample) for sample in range(request.count)]

    def _answer(self, request: CompletionRequest, sample: int) -> Completion:
        chance = Random(request.keys[sample])
        is_right = chance.random() < self._rate(request.question_id, Address.parse(request.address))
        words = " ".join(f"{chance.getrandbits(32):x}" for _ in range(12))
        text = f"{words}\n\nFinal Answer: {TRUTH if is_right else chance.randrange(100, 999)}"
        return Completion(request.keys[sample], text, None, FinishReason.STOP, "simulated")

    def rate_of(self, question_id: str) -> float:
        """Return the question's rate."""
        return self.accuracy if self.k is None else drawn(self.accuracy, self.k, f"{self}{question_id}")

    def _rate(self, question_id: str, parent: Address) -> float:
        rate = self.rate_of(question_id)
        for depth, k in zip(range(1, len(parent) + 1), self.branches, strict=False):
            rate = drawn(rate, k, f"{self}{question_id}/{Address(parent[:depth])}")
        return rate


def drawn(mean: float, k: float, seed: str) -> float:
    """Draw a rate around a mean."""
    if not 1e-6 < mean < 1 - 1e-6:
        return mean
    return Random(seed).betavariate(k * mean, k * (1 - mean))


@dataclass
class Yield:
    """Cost and rows of trees in one growth mode."""

    requests: int = 0
    """Number of requests, which determines the cost of prompts: siblings share a request."""
    completions: int = 0
    pairs: Counter[str] = field(default_factory=Counter)
    """Number of pairs, by question."""
    sft: int = 0
    labels: dict[tuple[str, Address], bool | None] = field(default_factory=dict)
    generations: dict[tuple[str, Address], float] = field(default_factory=dict)
    """Values of generations, by question and address."""

    def add(self, valued: ValuedTree, spec: RunSpec) -> None:
        """Count one tree."""
        question_id, valued = valued.tree.question.question_id, measure_lengths(valued, token_counter(spec.dataset))
        self.completions += len(valued.tree.nodes)
        for role in PLAYERS:
            selected = select(valued, role, spec.dataset)
            self.pairs[question_id] += len(selected["dpo"].kept)
            self.sft += len(selected["sft"].kept)
        self.labels |= {(question_id, address): valued.label(address) for address in valued.tree.nodes}
        self.generations |= {
            (question_id, address): value.mean for address, value in valued.values.items() if len(address) == 1
        }


async def grown(questions: Sequence[Question], spec: RunSpec, prompts: PromptSet, complete: Complete) -> Yield:
    """Grow and count some trees."""
    total = Yield()

    async def counted(request: CompletionRequest) -> Sequence[Completion]:
        total.requests += 1
        return await complete(request)

    for question in questions:
        total.add(await assess(question, TreeInputs(spec, prompts, counted)), spec)
    return total


async def compare(
    name: str,
    questions: Sequence[Question],
    spec: RunSpec,
    prompts: PromptSet,
    complete: Complete,
    rate_of: Callable[[str], float] | None = None,
) -> None:
    """Print one line: adaptive growth beside full growth."""
    adaptive = spec.model_copy(update={"growth": GrowthSpec(mode="adaptive")})
    full, less = [await grown(questions, each, prompts, complete) for each in (spec, adaptive)]
    pairs = per_thousand(full.pairs.total(), less.pairs.total(), full, less)
    sft = per_thousand(full.sft, less.sft, full, less)
    agree = sum(full.labels[node] == label for node, label in less.labels.items()) / len(less.labels)
    lean = sum(abs(value - 0.5) - abs(full.generations[node] - 0.5) for node, value in less.generations.items())
    print_row(
        name,
        f"{less.completions / full.completions:.0%}",
        f"{less.requests / full.requests:.0%}",
        *pairs,
        *sft,
        f"{oracle(full, rate_of):.2f}" if rate_of else "-",
        f"{less.pairs.total() / max(1, full.pairs.total()):.0%}",
        f"{agree:.1%}",
        f"{lean / max(1, len(less.generations)):+.3f}",
    )


def oracle(full: Yield, rate_of: Callable[[str], float]) -> float:
    """Return how many times the pairs of full growth a completion would give if every question's rate were known.

    The best that whole trees for the questions with rates nearest 1/2, and `FIRST` completions for all others, can do.
    """
    nearest = sorted(full.pairs, key=lambda question_id: abs(rate_of(question_id) - 0.5))
    tree = full.completions / len(nearest)
    pairs = accumulate(full.pairs[question_id] for question_id in nearest)
    best = max(got / (FIRST * len(nearest) + (tree - FIRST) * whole) for whole, got in enumerate(pairs, 1))
    return best * full.completions / full.pairs.total()


def per_thousand(full_rows: int, rows: int, full: Yield, less: Yield) -> tuple[str, str, str]:
    """Write rows for 1,000 completions of full and adaptive growth, and their ratio."""
    before, after = 1000 * full_rows / full.completions, 1000 * rows / less.completions
    return f"{before:.0f}", f"{after:.0f}", f"{after / before:.2f}" if before else "-"


def print_row(*cells: str) -> None:
    """Print one line of the table."""
    print(f"{cells[0]:<30}" + "".join(f"{cell:>11}" for cell in cells[1:]))


async def simulate(count: int) -> None:
    """Compare on all simulated models."""
    prompts = load_prompts("general")
    questions = [
        Question(question_id=f"q{number}", question=f"Question {number}?", ground_truth=TRUTH)
        for number in range(count)
    ]
    for accuracy, model in MODELS.items():
        k = fitted(model).k
        for name, simulated in (
            ("alike", Simulated(accuracy, None)),
            ("k = 2", Simulated(accuracy, 2.0)),
            (f"published, k = {k}", Simulated(accuracy, k)),
            ("branches too", Simulated(accuracy, k, BRANCHES)),
        ):
            await compare(f"{accuracy}, {name}", questions, SPEC, prompts, simulated, simulated.rate_of)


def embedded(count: int) -> None:
    """Compare on the embedded model: full trees are generated, and adaptive ones are read from the same samples."""
    threes = [f"roles.{role}.samples=3" for role in PLAYERS]
    spec = load_spec(Path("configs/quickstart.toml"), threes, limit=count)
    job, session = read_job(spec), open_session(Settings(), spec.limits)
    ids = [question.question_id for question in job.questions]
    session.run(ask_all(job.questions, TreeInputs(spec, job.prompts, make_completer(session, ids))))
    recall = StoreCompleter(session.store.rows(ids))
    asyncio.run(compare(f"embedded, {count} questions", job.questions, spec, job.prompts, recall))
    close_sessions()


def main() -> None:
    """Print the table.

    `completions`, `requests`, `kept` (pairs): shares of full growth's. `labels`: the share that equals the full tree's.
    `oracle`: the ratio of pairs if every question's rate were known beforehand.
    `lean`: how much further from 1/2 a generation's value is than in the full tree, on average.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trees", nargs="?", type=int, default=300)
    parser.add_argument("--embedded", type=int, metavar="N")
    asked = parser.parse_args()
    print_row(*HEAD)
    embedded(asked.embedded) if asked.embedded else asyncio.run(simulate(asked.trees))


if __name__ == "__main__":
    main()
