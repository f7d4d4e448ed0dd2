"""Growth: from a question to its tree. Who answers is an argument, so the same growth runs anywhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from malt.concurrency import Wait, gather_all
from malt.config.spec import PLAYERS, Role, RunSpec
from malt.llm.request import Complete, Completion, CompletionRequest, RequestFailed
from malt.prompts import PromptSet
from malt.questions.question import Question
from malt.trees.tree import Address, FailedBranch, Node, Tree


async def grow(
    question: Question, spec: RunSpec, prompts: PromptSet, complete: Complete, wait: Wait = gather_all
) -> Tree:
    """Grow one question's tree: a node's children are asked for the moment it exists, siblings in one request.

    A branch that cannot be had is recorded and the rest grows on. `RunStopped` and our own faults are raised, once
    everything already asked has come back. `wait` is how children of one node are waited for.
    """
    growth = Growth(question, spec, prompts, complete, wait)
    await growth.expand(Address())
    return Tree(question, dict(sorted(growth.nodes.items())), tuple(sorted(growth.failures)))


@dataclass(slots=True)
class Growth:
    """A tree as it grows."""

    question: Question
    spec: RunSpec
    prompts: PromptSet
    complete: Complete
    wait: Wait
    nodes: dict[Address, Node] = field(default_factory=dict)
    failures: list[FailedBranch] = field(default_factory=list)

    async def expand(self, parent: Address) -> None:
        """Ask for all that grows from a node."""
        request = expansion(self.question, parent, self.nodes, self.spec, self.prompts)
        children, reason = await had(self.complete, request)
        if reason is not None:
            self.failures.append(FailedBranch(self.question.question_id, str(parent), request.role, reason))
        for sample, completion in children.items():
            address = parent.child(sample)
            self.nodes[address] = Node(address, request.messages, completion)
        if request.role is not PLAYERS[-1]:
            await self.wait(self.expand(parent.child(sample)) for sample in children)


def expansion(
    question: Question,
    parent: Address,
    nodes: Mapping[Address, Node],
    spec: RunSpec,
    prompts: PromptSet,
    count: int | None = None,
) -> CompletionRequest:
    """Return the one request for the first `count` children, or all. The reference answer is no part of it."""
    role = PLAYERS[len(parent)]
    slots = {"question": question.question}
    if len(parent) >= 1:
        slots["solution"] = nodes[Address(parent[:1])].text
    if len(parent) == 2:
        slots["verification"] = nodes[parent].text
    declared = spec.roles[role]
    return CompletionRequest(
        role=role,
        model=declared,
        messages=prompts.messages(role, **slots),
        question_id=question.question_id,
        address=str(parent),
        count=declared.samples if count is None else count,
    )


async def had(complete: Complete, request: CompletionRequest) -> tuple[Mapping[int, Completion], str | None]:
    """Return the children that could be had, by sample number, and why others could not."""
    try:
        return dict(enumerate(await complete(request))), None
    except RequestFailed as failure:
        return failure.completed, str(failure)


def requests_per_question(spec: RunSpec) -> dict[Role, int]:
    """Requests a full tree takes, by role: one for each parent, which asks for all of its children."""
    n, m, _ = spec.roles.branching
    return {Role.GENERATOR: 1, Role.VERIFIER: n, Role.REFINER: n * m}


def nodes_per_question(spec: RunSpec) -> dict[Role, int]:
    """Nodes of a full tree, by role: n, n², n³ where every level branches n ways."""
    n, m, k = spec.roles.branching
    return {Role.GENERATOR: n, Role.VERIFIER: n * m, Role.REFINER: n * m * k}
