"""Growth: from a question to its tree. Who answers is an argument, so the same growth runs anywhere."""

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
    """What trees are grown and graded with, beside their questions."""

    spec: RunSpec
    prompts: PromptSet
    complete: Complete
    judge: LLMEvaluator | None = None
    """Stands in for the one that the spec declares."""
    wait: Wait = gather_all
    """How children of one node are waited for."""


async def grow(question: Question, inputs: TreeInputs) -> Tree:
    """Grow one question's tree: a node's children are asked for the moment it exists, siblings in one request.

    A branch that cannot be had is recorded and the rest grows on. `RunStopped` and our own faults are raised, once
    everything already asked has come back.
    """
    growing = GrowingTree(question, inputs)

    async def expand(parent: Address) -> None:
        children, _ = await growing.ask(parent)
        await inputs.wait(expand(child.address) for child in children if not child.address.is_leaf)

    await expand(Address())
    return growing.tree


@dataclass(slots=True)
class GrowingTree:
    """A tree as it grows."""

    question: Question
    inputs: TreeInputs
    nodes: dict[Address, Node] = field(default_factory=dict)
    failures: list[FailedBranch] = field(default_factory=list)

    async def ask(self, parent: Address, count: int | None = None) -> tuple[list[Node], bool]:
        """Ask for the first `count` children of a node, or all; return those that came, and whether all did."""
        texts = [self.nodes[above].text for above in parent.path]
        request = build_request(self.question, parent, texts, self.inputs.spec, self.inputs.prompts, count)
        came: Mapping[int, Completion]
        try:
            came, is_whole = dict(enumerate(await self.inputs.complete(request))), True
        except RequestFailed as failure:
            came, is_whole = failure.completed, False
            self.failures.append(FailedBranch(self.question.question_id, str(parent), request.role, str(failure)))
        children = [Node(parent.child(sample), request.messages, given) for sample, given in came.items()]
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
    """Return the one request for the first `count` children of a node, or all; `texts` lead from the root to it."""
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
    """Requests a full tree takes, by role: one for each parent, which asks for all of its children."""
    return dict(zip(PLAYERS, (1, *nodes_per_question(spec).values()), strict=False))


def nodes_per_question(spec: RunSpec) -> dict[Role, int]:
    """Nodes of a full tree, by role: n, n², n³ where every level branches n ways."""
    return dict(zip(PLAYERS, accumulate(spec.roles.branching, mul), strict=True))
