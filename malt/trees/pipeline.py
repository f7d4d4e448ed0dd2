"""Assessment of a question: grow its tree, grade every leaf, propagate the credit."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple

from malt.concurrency import Wait, gather_all
from malt.config.roles import Role
from malt.config.spec import EvaluatorSpec, GraderKind, RunSpec
from malt.errors import RunStopped
from malt.grading.graders import Grader, grade, graders_for, objective_grader
from malt.grading.grades import Grade, Outcome, truncated_grade
from malt.grading.judge import LLMEvaluator
from malt.llm.request import RequestFailed
from malt.questions.question import Question
from malt.trees.adaptive import grow_adaptively
from malt.trees.credit import OwnAnswer, ValuedTree, leaf_reward, value_tree
from malt.trees.growth import TreeInputs, grow
from malt.trees.tree import Address, FailedBranch, Node, NodeStatus, Tree


async def assess(question: Question, inputs: TreeInputs) -> ValuedTree:
    """Grow, grade, value and diagnose one question's tree; the judge, if there is one, is asked like any other role."""
    valued = await grade_tree(await grow_tree(question, inputs), inputs)
    return replace(valued, diagnosis=await diagnose(valued, inputs.spec.evaluator, inputs.wait))


async def grow_tree(question: Question, inputs: TreeInputs) -> Tree:
    """Grow one question's tree: in full, or adaptively, with its leaves graded on the way."""
    spec = inputs.spec
    if spec.growth.mode == "full":
        return await grow(question, inputs)
    graders = graders_for(spec.evaluator, _judge_asking(inputs))

    async def reward(leaf: Node) -> float | None:
        try:
            return leaf_reward(await grade_text(question, leaf, graders), spec.credit)
        except RequestFailed:
            return None  # `grade_tree` grades it again, and records the failed branch

    return await grow_adaptively(question, inputs, reward)


class Shortfall(NamedTuple):
    """Failed branches of some questions, and the reason why the run stopped, if it did."""

    failures: tuple[FailedBranch, ...]
    stopped: str | None
    waits: str | None = None
    """Batches that are still in flight, with which the same command goes on; None if there are none."""


NOTHING_MISSING = Shortfall((), None)


Admit = Callable[[Question], AbstractAsyncContextManager[None]]
"""Context that is entered when a question's tree may begin, and left when all of it was requested."""


async def ask_all(
    questions: Iterable[Question], inputs: TreeInputs, admit: Admit = lambda _question: nullcontext()
) -> Shortfall:
    """Request everything that these questions need, so that it is stored; the trees themselves are discarded."""

    async def find_failures(question: Question) -> tuple[FailedBranch, ...]:
        async with admit(question):
            tree = await grow_tree(question, inputs)
            return (await grade_tree(tree, inputs)).tree.failures if asks_judge(inputs.spec) else tree.failures

    return await gather_shortfall(map(find_failures, questions))


async def gather_shortfall(work: Iterable[Awaitable[tuple[FailedBranch, ...]]]) -> Shortfall:
    """Gather every question's failed branches, and note a stop of the run; any other error is raised at the end."""
    results = await asyncio.gather(*work, return_exceptions=True)
    stops = [str(result) for result in results if isinstance(result, RunStopped)]
    failures = [branch for result in results if isinstance(result, tuple) for branch in result]
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, RunStopped):
            raise result
    return Shortfall(tuple(failures), stops[0] if stops else None)


def asks_judge(spec: RunSpec) -> bool:
    """Whether grading may send requests to a judge."""
    return "llm" in spec.evaluator.kind


def _judge_asking(inputs: TreeInputs) -> LLMEvaluator | None:
    """Return the given or declared judge, with `complete` for its requests; None where grading needs no judge."""
    if not asks_judge(inputs.spec):
        return None
    if inputs.judge is not None:
        return inputs.judge.asking_with(inputs.complete)
    return LLMEvaluator.from_spec(inputs.spec.evaluator, inputs.prompts, inputs.complete)


async def grade_tree(tree: Tree, inputs: TreeInputs) -> ValuedTree:
    """Grade a tree's leaves, and its inner nodes where the judge's scope is all, and value every node."""
    spec, judge = inputs.spec, _judge_asking(inputs)
    grades: dict[Address, Grade] = {}
    failures: list[FailedBranch] = []

    async def grade_node(node: Node, graders: Sequence[Grader]) -> None:
        try:
            grades[node.address] = await grade_text(tree.question, node, graders)
        except RequestFailed as failure:
            address = str(node.address)
            failures.append(FailedBranch(tree.question.question_id, address, Role.EVALUATOR, str(failure)))
            grades[node.address] = Grade(Outcome.UNKNOWN, None, LLMEvaluator.kind, None, str(failure))

    cascade = graders_for(spec.evaluator, judge)
    graded_by: list[tuple[Node, Sequence[Grader]]] = [(leaf, cascade) for leaf in tree.leaves]
    if judge is not None and spec.evaluator.scope == "all":
        graded_by += [(node, [judge]) for node in tree.nodes.values() if not node.address.is_leaf]
    await inputs.wait(grade_node(node, graders) for node, graders in graded_by)
    graded = {address: grades[address] for address in tree.nodes if address in grades}
    return value_tree(replace(tree, failures=(*tree.failures, *sorted(failures))), graded, spec.credit)


def diagnosing(evaluator: EvaluatorSpec) -> tuple[GraderKind, ...]:
    """Return the graders for a diagnosis, which makes no requests: all but the judge.

    Where the judge is the only grader, return it if it has judged all nodes anyway, else none: an answer and its
    refinement are only comparable if the same graders graded both.
    """
    objective = tuple(kind for kind in evaluator.kind if kind != "llm")
    return objective or (evaluator.kind if evaluator.scope == "all" else ())


async def diagnose(valued: ValuedTree, evaluator: EvaluatorSpec, wait: Wait = gather_all) -> dict[Address, OwnAnswer]:
    """Grade every answer of a complete tree, those of inner nodes too, with the graders for a diagnosis only."""
    kinds = diagnosing(evaluator)
    if not (kinds and valued.tree.complete):
        return {}
    graders = [objective_grader(kind, evaluator) for kind in kinds if kind != "llm"]

    async def own_answer(node: Node) -> OwnAnswer:
        known = valued.grades.get(node.address)
        if known is None or not decided_by(kinds, known, evaluator):
            known = await grade_text(valued.tree.question, node, graders)
        return OwnAnswer(known.outcome, known.answer)

    nodes = [node for node in valued.tree.nodes.values() if node.role.gives_answer]
    answers = await wait(own_answer(node) for node in nodes)
    return {node.address: answer for node, answer in zip(nodes, answers, strict=True)}


def decided_by(kinds: Sequence[GraderKind], known: Grade, evaluator: EvaluatorSpec) -> bool:
    """Whether a grade from the whole cascade is the one that these graders alone would have given."""
    return kinds == evaluator.kind or (known.grader in kinds and known.outcome is not Outcome.UNKNOWN)


async def grade_text(question: Question, node: Node, graders: Sequence[Grader]) -> Grade:
    """Grade one text; a truncated one is not graded, as its final answer is unknown."""
    if node.status is NodeStatus.TRUNCATED:
        return truncated_grade()
    return await grade(question, node.text, graders)
