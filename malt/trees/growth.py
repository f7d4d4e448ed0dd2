"""Growth of a question's tree. The completer is an argument, so trees grow alike from a store, a provider or a test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul
from typing import NamedTuple

from malt.concurrency import Wait, gather_all
from malt.config.roles import PLAYERS, TRAJECTORY, Role
from malt.config.spec import RunSpec
from malt.grading.judge import LLMEvaluator
from malt.llm.request import Complete, Completion, CompletionRequest, RequestFailed
from malt.prompts import PromptSet
from malt.questions.question import Question
from malt.trees.tree import Address, FailedBranch, Node, Tree


class TreeInputs(NamedTuple):
    """Inputs for growing and grading trees, apart from their questions."""

    spec: RunSpec
    prompts: PromptSet
    complete: Complete
    judge: LLMEvaluator | None = None
    """Judge that replaces the one declared in the spec."""
    wait: Wait = gather_all
    """Function that awaits the children of one node: concurrently or in turn."""


async def grow(question: Question, inputs: TreeInputs) -> Tree:
    """Grow one question's tree: a node's children are requested as soon as it exists, siblings in one request.

    A branch whose request fails is recorded, and the rest grows on. `RunStopped` and all other errors are raised once
    every request in flight has ended.
    """
    growing = GrowingTree(question, inputs)

    async def expand(parent: Address) -> None:
        children, _ = await growing.ask(parent)
        await inputs.wait(expand(child.address) for child in children if not child.address.is_leaf)

    await expand(Address())
    return growing.tree


@dataclass(slots=True)
class GrowingTree:
    """A tree that is still growing."""

    question: Question
    inputs: TreeInputs
    nodes: dict[Address, Node] = field(default_factory=dict)
    failures: list[FailedBranch] = field(default_factory=list)

    async def ask(self, parent: Address, count: int | None = None) -> tuple[list[Node], bool]:
        """Request the first `count` children of a node, or all; return those that came, and whether all did."""
        texts = [self.nodes[above].text for above in parent.path]
        request = build_request(self.question, parent, texts, self.inputs.spec, self.inputs.prompts, count)
        completed: Mapping[int, Completion]
        try:
            completed, is_whole = dict(enumerate(await self.inputs.complete(request))), True
        except RequestFailed as failure:
            completed, is_whole = failure.completed, False
            self.failures.append(FailedBranch(self.question.question_id, str(parent), request.role, str(failure)))
        children = [Node(parent.child(sample), request.messages, each) for sample, each in completed.items()]
        for child in children:
            self.nodes.setdefault(child.address, child)
        return children, is_whole

    @property
    def tree(self) -> Tree:
        return Tree(self.question, dict(sorted(self.nodes.items())), tuple(sorted(self.failures)))


def build_request(
    question: Question,
    parent: Address,
    texts: Sequence[str],
    spec: RunSpec,
    prompts: PromptSet,
    count: int | None = None,
) -> CompletionRequest:
    """Return the request for the first `count` children of a node, or all; `texts` are those from the root to it."""
    role = PLAYERS[len(parent)]
    written = {part.writes: text for part, text in zip(TRAJECTORY, texts, strict=False)}
    declared = spec.roles[role]
    return CompletionRequest(
        role=role,
        model=declared,
        messages=prompts.messages(role, question=question.question, **written),
        question_id=question.question_id,
        address=str(parent),
        count=declared.samples if count is None else count,
    )


def requests_per_question(spec: RunSpec) -> dict[Role, int]:
    """Return the number of requests for a full tree, by role: one per parent, for all of its children."""
    return dict(zip(PLAYERS, (1, *nodes_per_question(spec).values()), strict=False))


def nodes_per_question(spec: RunSpec) -> dict[Role, int]:
    """Return the number of nodes of a full tree, by role: n, n², n³ where every level branches n ways."""
    return dict(zip(PLAYERS, accumulate(spec.roles.branching, mul), strict=True))
