"""Prints the share of prompt tokens saved by siblings in one request, and the hit rate of a prefix cache on the rest.

`python -m benchmarks.prefixes`. Trees (n = 3, the prompts of `math`) grow through the real growth and limiter, in
virtual time, 128 requests in flight, each answered after 5 to 15 s. The requests then pass, in several orders, a
model of vLLM's cache: blocks of 16 tokens, identified by their whole prefix, replies included; the least recently used
is evicted first. A token is a word or a mark. All questions (60 words) and all replies (250 words) are different.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from random import Random
from typing import NamedTuple

from malt.config.limits import Limits
from malt.config.questions import QuestionSource
from malt.config.roles import PLAYERS, Role
from malt.config.spec import EvaluatorSpec, RunSpec
from malt.llm.rate_limit.limiter import Endpoint
from malt.llm.request import Completion, CompletionRequest, FinishReason
from malt.prompts import load_prompts
from malt.questions.question import Question
from malt.trees.growth import TreeInputs
from malt.trees.pipeline import ask_all
from tests.replies import Reply
from tests.virtual_time import run

QUESTIONS, QUESTION_WORDS, REPLY_WORDS = 400, 60, 250
IN_FLIGHT, LATENCY_S = 128, (5.0, 15.0)
BLOCK = 16
CACHES = (50_000, 100_000, 200_000, 400_000)
"""Cache sizes in tokens: 100,000 take about 12 GiB for an 8B model in 16 bits with eight key-value heads."""
SPEC = RunSpec(name="prefixes", questions=QuestionSource(source="none"), evaluator=EvaluatorSpec(kind=("number",)))


class Sent(NamedTuple):
    """One request."""

    role: Role
    prompt: Sequence[str]
    samples: int


class PrefixCache:
    """Cached blocks; a block's name includes its whole prefix."""

    def __init__(self, tokens: int) -> None:
        self._room = tokens // BLOCK
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._new = count()

    def ask(self, sent: Sent) -> int:
        """Return the number of the prompt's tokens in the cache; add the prompt and its replies to it."""
        blocks = names(sent.prompt)
        found = next((place for place, block in enumerate(blocks) if block not in self._kept), len(blocks))
        replies = [hash((sent.role, next(self._new), "reply")) for _ in range(sent.samples * REPLY_WORDS // BLOCK)]
        for block in (*blocks, *replies):
            self._kept[block] = None
            self._kept.move_to_end(block)
        while len(self._kept) > self._room:
            self._kept.popitem(last=False)
        return found * BLOCK


def names(prompt: Sequence[str]) -> list[int]:
    """Name the whole blocks of a prompt."""
    named, before = [], 0
    for start in range(0, len(prompt) - BLOCK + 1, BLOCK):
        before = hash((before, *prompt[start : start + BLOCK]))
        named.append(before)
    return named


def words(number: int, chance: Random) -> str:
    """Return a unique text."""
    return " ".join(f"{chance.getrandbits(40):x}" for _ in range(number))


def grown() -> list[Sent]:
    """Grow all trees; return the requests in the order in which they were sent."""
    sent: list[Sent] = []
    chance = Random(7)
    endpoint = Endpoint(Limits(max_in_flight=IN_FLIGHT))
    questions = [
        Question(question_id=f"q{number}", question=words(QUESTION_WORDS, chance), ground_truth="42")
        for number in range(QUESTIONS)
    ]

    async def complete(request: CompletionRequest) -> Sequence[Completion]:
        prompt = re.findall(r"\w+|[^\w\s]", " ".join(f"{role} {text}" for role, text in request.messages))

        async def attempt() -> Reply:
            sent.append(Sent(request.role, prompt, request.count))
            await asyncio.sleep(chance.uniform(*LATENCY_S))
            return Reply()

        await endpoint.call(attempt, 1, request.question_id)
        return [Completion(key, words(REPLY_WORDS, chance), None, FinishReason.STOP, "m") for key in request.keys]

    run(ask_all(questions, TreeInputs(SPEC, load_prompts("math"), complete)))
    return sent


def one_by_one(sent: Sequence[Sent]) -> list[Sent]:
    """Request each sample singly, siblings one after the other."""
    return [each._replace(samples=1) for each in sent for _ in range(each.samples)]


def by_level(sent: Sequence[Sent]) -> list[Sent]:
    """Request all solutions, then all critiques, then all refinements, as staged pipelines do."""
    return sorted(sent, key=lambda each: PLAYERS.index(each.role))


def shuffled(sent: Sequence[Sent]) -> list[Sent]:
    """Request in random order."""
    return Random(7).sample(sent, len(sent))


ORDERS: Mapping[str, Callable[[Sequence[Sent]], Sequence[Sent]]] = {
    "as it is": lambda sent: sent,
    "level by level": by_level,
    "shuffled": shuffled,
    "without n, as it is": one_by_one,
    "without n, level by level": lambda sent: one_by_one(by_level(sent)),
    "without n, shuffled": lambda sent: shuffled(one_by_one(sent)),
}


def main() -> None:
    """Print the table."""
    sent = grown()
    print(
        f"{QUESTIONS} questions, {IN_FLIGHT} in flight; prompt tokens sent, and the share found in a cache of so many\n"
    )
    print("| order | requests | prompt tokens | " + " | ".join(f"{size:,}" for size in CACHES) + " |")
    print("|---|---:|---:|" + "---:|" * len(CACHES))
    for name, order in ORDERS.items():
        requests = order(sent)
        tokens = sum(len(each.prompt) for each in requests)
        shares = [sum(map(PrefixCache(size).ask, requests)) / tokens for size in CACHES]
        print(f"| {name} | {len(requests):,} | {tokens:,} | " + " | ".join(f"{share:.1%}" for share in shares) + " |")


if __name__ == "__main__":
    main()
