"""Answers: what a system says to a question, chain by chain, with grades. Asking and reading back are one function.

The generator's answer (the single agent's) and the chain's are graded by the same graders.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from malt.concurrency import Wait, gather_all, gather_in_turn
from malt.config.roles import Role
from malt.datasets.stats.diagnostics import stated_verdict
from malt.evaluation.systems import Kind, Lineup, mute_absent
from malt.grading.answers import final_answer
from malt.grading.graders import Grader, graders_for
from malt.grading.grades import Grade, Outcome
from malt.grading.judge import LLMEvaluator
from malt.llm.client.completers import make_store_completer
from malt.llm.request import Complete, Completion, RequestFailed
from malt.llm.store.samples import Store
from malt.prompts import PromptSet
from malt.questions.question import Question
from malt.trees.growth import TreeInputs
from malt.trees.pipeline import Admit, Shortfall, asks_judge, gather_shortfall, grade_text, grow_tree
from malt.trees.tree import Address, FailedBranch, Node

WINDOW = 500
"""Systems' answers to one question that are read from the store at once."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One chain: three texts, the grade of the first and of the chain, and what it took."""

    question_id: str
    system: str
    kind: Kind
    chain: int
    seed: int | None
    question: str
    ground_truth: str
    generator: str | None
    verifier: str | None
    """None where it does not take part, or could not be had."""
    refiner: str | None
    generator_outcome: Outcome
    generator_answer: str | None
    verdict: bool | None
    """Whether the verifier says that the generator's answer is correct; None where it states nothing."""
    outcome: Outcome
    """Of the chain's final answer."""
    answer: str | None
    generator_prompt_tokens: int | None
    generator_completion_tokens: int | None
    generator_cost_usd: float | None
    generator_latency_s: float
    prompt_tokens: int | None
    """Of the whole chain, as all that follow."""
    completion_tokens: int | None
    cost_usd: float | None
    latency_s: float


class Answered(NamedTuple):
    """A system's answers to one question, and what could not be had of them."""

    answers: tuple[Answer, ...]
    failures: tuple[FailedBranch, ...]


async def ask_answers(
    asked: Iterable[tuple[Question, Lineup]],
    prompts: PromptSet,
    complete: Complete,
    admit: Callable[[Lineup], Admit],
) -> Shortfall:
    """Ask for everything that the systems need, so that the store has it; what several share is asked once."""

    async def missing_of(question: Question, lineup: Lineup) -> tuple[FailedBranch, ...]:
        async with admit(lineup)(question):
            ask = mute_absent(lineup, complete)
            if asks_judge(lineup.spec):
                return (await answer_question(question, lineup, prompts, ask)).failures
            return (await grow_tree(question, TreeInputs(lineup.spec, prompts, ask))).failures

    return await gather_shortfall(missing_of(question, lineup) for question, lineup in asked)


def stored_answers(asked: Sequence[tuple[Question, Lineup]], prompts: PromptSet, store: Store) -> Iterator[Answered]:
    """Yield what the store holds, in order; nobody is asked."""

    async def window_answered(window: Sequence[tuple[Question, Lineup]]) -> list[Answered]:
        stored = make_store_completer(store, dict.fromkeys(question.question_id for question, _ in window))
        return await gather_in_turn(
            answer_question(question, lineup, prompts, mute_absent(lineup, stored), gather_in_turn)
            for question, lineup in window
        )

    for start in range(0, len(asked), WINDOW):
        yield from asyncio.run(window_answered(asked[start : start + WINDOW]))


async def answer_question(
    question: Question, lineup: Lineup, prompts: PromptSet, complete: Complete, wait: Wait = gather_all
) -> Answered:
    """Let a system answer a question, and grade what it says."""
    tree = await grow_tree(question, TreeInputs(lineup.spec, prompts, complete, wait=wait))
    judge = LLMEvaluator.from_spec(lineup.spec.evaluator, prompts, complete) if asks_judge(lineup.spec) else None
    grading = Grading(question, graders_for(lineup.spec.evaluator, judge))
    chains = [Address((chain,)) for chain in range(lineup.chains)]
    answers = await wait(grading.answer(lineup, tree.nodes, chain) for chain in chains)
    return Answered(tuple(answers), (*tree.failures, *sorted(grading.failures)))


class Grading:
    """Grades one system's chains to one question."""

    def __init__(self, question: Question, graders: Sequence[Grader]) -> None:
        self.question = question
        self.graders = graders
        self.failures: list[FailedBranch] = []

    async def answer(self, lineup: Lineup, nodes: Mapping[Address, Node], first: Address) -> Answer:
        """Grade one chain."""
        chain = {role: find_node(role, first, nodes, lineup) for role in (Role.GENERATOR, Role.VERIFIER, Role.REFINER)}
        single = await self.grade(chain[Role.GENERATOR])
        final = await self.final(lineup.roles, chain, single)
        spoken = [node.completion for node in chain.values() if node is not None]
        alone = spoken[:1] if chain[Role.GENERATOR] else []
        critique = chain[Role.VERIFIER]
        return Answer(
            question_id=self.question.question_id,
            system=lineup.system,
            kind=lineup.kind,
            chain=first[0],
            seed=lineup.seed,
            question=self.question.question,
            ground_truth=self.question.ground_truth,
            **{role.value: None if node is None else node.text for role, node in chain.items()},
            generator_outcome=single.outcome,
            generator_answer=single.answer,
            verdict=None if critique is None else stated_verdict(critique.text),
            outcome=final.outcome,
            answer=final.answer,
            generator_prompt_tokens=total([one.prompt_tokens for one in alone]),
            generator_completion_tokens=total([one.completion_tokens for one in alone]),
            generator_cost_usd=add_costs(alone),
            generator_latency_s=sum(one.latency_s for one in alone),
            prompt_tokens=total([one.prompt_tokens for one in spoken]),
            completion_tokens=total([one.completion_tokens for one in spoken]),
            cost_usd=add_costs(spoken),
            latency_s=sum(one.latency_s for one in spoken),
        )

    async def final(self, roles: Sequence[Role], chain: Mapping[Role, Node | None], single: Grade) -> Grade:
        """Grade what a chain answers in the end: the last text that gives an answer, of those who take part."""
        if any(chain[role] is None for role in roles):
            return MISSING
        if roles[-1] is Role.REFINER:
            return await self.grade(chain[Role.REFINER])
        critique = chain[Role.VERIFIER] if roles[-1] is Role.VERIFIER else None
        return single if critique is None or final_answer(critique.text) is None else await self.grade(critique)

    async def grade(self, node: Node | None) -> Grade:
        """Grade one text; a judge that cannot be asked is a failure, and the grade is unknown."""
        if node is None:
            return MISSING
        try:
            return await grade_text(self.question, node, self.graders)
        except RequestFailed as failure:
            branch = FailedBranch(self.question.question_id, str(node.address), Role.EVALUATOR, str(failure))
            self.failures.append(branch)
            return Grade(Outcome.UNKNOWN, None, LLMEvaluator.kind, None, str(failure))


MISSING = Grade(Outcome.UNKNOWN, None, "none", None, "could not be had")


def find_node(role: Role, first: Address, nodes: Mapping[Address, Node], lineup: Lineup) -> Node | None:
    """Return a role's text in the chain that begins with a generation."""
    if role not in lineup.roles:
        return None
    return nodes.get(first if role is Role.GENERATOR else Address((*first, *[0] * list(Role).index(role))))


def total(counts: Sequence[int | None]) -> int | None:
    """Add up token counts; one that is not known makes all of it unknown."""
    return None if None in counts else sum(count for count in counts if count is not None)


def add_costs(completions: Sequence[Completion]) -> float | None:
    """Add up costs; one that is not known makes all of it unknown."""
    costs = [completion.cost_usd for completion in completions]
    return None if None in costs else sum(cost for cost in costs if cost is not None)
