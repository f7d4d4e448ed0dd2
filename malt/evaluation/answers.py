"""Answers of a system to a question, chain by chain, with grades. One function both asks and reads back from the store.

The generator's answer (the single agent's) and the chain's final answer are graded by the same graders.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from malt.concurrency import Wait, gather_all, gather_in_turn
from malt.config.roles import PLAYERS, Role
from malt.datasets.stats.diagnostics import verdict_among
from malt.evaluation.systems import Lineup, mute_absent
from malt.evaluation.table import Answer, Taken
from malt.grading.answers import final_answer
from malt.grading.graders import Grader, graders_for
from malt.grading.grades import Grade, Outcome
from malt.grading.judge import LLMEvaluator
from malt.llm.client.completers import make_store_completer
from malt.llm.request import Complete, RequestFailed
from malt.llm.store.samples import Store
from malt.prompts import PromptSet
from malt.questions.question import Question
from malt.trees.growth import TreeInputs
from malt.trees.pipeline import Admit, Shortfall, asks_judge, gather_shortfall, grade_text, grow_tree
from malt.trees.tree import Address, FailedBranch, Node

_WINDOW = 500
"""Number of pairs of question and system that are read from the store at once."""


class Answered(NamedTuple):
    """A system's answers to one question, and the branches that failed."""

    answers: tuple[Answer, ...]
    failures: tuple[FailedBranch, ...]


async def ask_answers(
    asked: Iterable[tuple[Question, Lineup]], prompts: PromptSet, complete: Complete, admit: Callable[[Lineup], Admit]
) -> Shortfall:
    """Request everything that the systems need, so that the store has it; requests that several share are made once."""

    async def ask_missing(question: Question, lineup: Lineup) -> tuple[FailedBranch, ...]:
        async with admit(lineup)(question):
            ask = mute_absent(lineup, complete)
            if asks_judge(lineup.spec):
                return (await _answer_question(question, lineup, prompts, ask)).failures
            return (await grow_tree(question, TreeInputs(lineup.spec, prompts, ask))).failures

    return await gather_shortfall(ask_missing(question, lineup) for question, lineup in asked)


def stored_answers(asked: Sequence[tuple[Question, Lineup]], prompts: PromptSet, store: Store) -> Iterator[Answered]:
    """Yield the answers that the store holds, in order; no model is asked."""

    async def read_window(window: Sequence[tuple[Question, Lineup]]) -> list[Answered]:
        stored = make_store_completer(store, dict.fromkeys(question.question_id for question, _ in window))
        return await gather_in_turn(
            _answer_question(question, lineup, prompts, mute_absent(lineup, stored), gather_in_turn)
            for question, lineup in window
        )

    for start in range(0, len(asked), _WINDOW):
        yield from asyncio.run(read_window(asked[start : start + _WINDOW]))


async def _answer_question(
    question: Question, lineup: Lineup, prompts: PromptSet, complete: Complete, wait: Wait = gather_all
) -> Answered:
    tree = await grow_tree(question, TreeInputs(lineup.spec, prompts, complete, wait=wait))
    judge = LLMEvaluator.from_spec(lineup.spec.evaluator, prompts, complete) if asks_judge(lineup.spec) else None
    grading = _Grading(question, graders_for(lineup.spec.evaluator, judge))
    chains = [Address((chain,)) for chain in range(lineup.chains)]
    answers = await wait(grading.answer(lineup, tree.nodes, chain) for chain in chains)
    return Answered(tuple(answers), (*tree.failures, *sorted(grading.failures)))


class _Grading:
    """Grades one system's chains for one question."""

    def __init__(self, question: Question, graders: Sequence[Grader]) -> None:
        self.question = question
        self.graders = graders
        self.failures: list[FailedBranch] = []

    async def answer(self, lineup: Lineup, nodes: Mapping[Address, Node], first: Address) -> Answer:
        chain = {role: _find_node(role, first, nodes, lineup) for role in PLAYERS}
        single = await self.grade(chain[PLAYERS[0]])
        spoken = [node.completion for node in chain.values() if node is not None]
        return Answer(
            self.question,
            lineup,
            first[0],
            {role: None if node is None else node.text for role, node in chain.items()},
            single,
            verdict_among(chain.values()),
            await self.final(lineup.roles, chain, single),
            Taken.by(spoken[:1] if chain[PLAYERS[0]] else []),
            Taken.by(spoken),
        )

    async def final(self, roles: Sequence[Role], chain: Mapping[Role, Node | None], single: Grade) -> Grade:
        """Grade a chain's final answer: the last role's that takes part, or the generator's where that gives none."""
        if any(chain[role] is None for role in roles):
            return _MISSING
        last = chain[roles[-1]]
        if roles[-1] is PLAYERS[0] or last is None:
            return single
        return await self.grade(last) if roles[-1].gives_answer or final_answer(last.text) is not None else single

    async def grade(self, node: Node | None) -> Grade:
        """Grade one text. Where the judge's request fails, record the failure and return an unknown grade."""
        if node is None:
            return _MISSING
        try:
            return await grade_text(self.question, node, self.graders)
        except RequestFailed as failure:
            branch = FailedBranch(self.question.question_id, str(node.address), Role.EVALUATOR, str(failure))
            self.failures.append(branch)
            return Grade(Outcome.UNKNOWN, None, LLMEvaluator.kind, None, str(failure))


_MISSING = Grade(Outcome.UNKNOWN, None, "none", None, "its request failed")


def _find_node(role: Role, first: Address, nodes: Mapping[Address, Node], lineup: Lineup) -> Node | None:
    """Return a role's node in the chain that begins with the generation `first`; None where there is none."""
    return nodes.get(Address((*first, *[0] * PLAYERS.index(role)))) if role in lineup.roles else None
