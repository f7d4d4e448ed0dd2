"""Growing under Prefect: a task run is a batch of questions, or one branch. What grows is the same."""

import asyncio
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, cast
from uuid import UUID

from prefect import Task, task
from prefect.blocks.system import Secret
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import RunInput, State, TaskRunResult
from prefect.states import Completed, Failed
from prefect.task_engine import run_task_async
from prefect.utilities.annotations import quote

from malt.config.settings import Settings
from malt.config.spec import Role, RunSpec
from malt.engine.tree_cost import beginning
from malt.errors import ConfigError, MaltError, RunStopped
from malt.grading.grades import Outcome
from malt.llm.client.completers import SessionCompleter, make_completer
from malt.llm.client.session import open_session, stop_sessions
from malt.llm.request import Completion, CompletionRequest, FinishReason
from malt.llm.store.schema import expect_store
from malt.llm.usage import Tally
from malt.prompts import PromptSet, load_prompts
from malt.questions.question import Question
from malt.trees.credit import ValuedTree
from malt.trees.pipeline import Shortfall, ask_all, value
from malt.trees.tree import Address, FailedBranch, Tree

T = TypeVar("T")


def whole(value: T) -> T:
    """Hand a value to a task as it is: Prefect otherwise walks through it, looking for other tasks' results."""
    return cast("T", quote(value))


@lru_cache
def prompts_of(name_or_folder: str) -> PromptSet:
    """Read a prompt set, once in each worker."""
    return load_prompts(name_or_folder)


def asker_of_run(
    run: str, questions: Sequence[Question], spec: RunSpec, settings: Settings, asks: frozenset[Role]
) -> SessionCompleter:
    """Return what some questions ask with in this process; once its session stopped, a run asks no more."""
    session = open_session(settings, spec.limits, run=run)
    return make_completer(session, [question.question_id for question in questions], asks, run)


async def keyed(spec: RunSpec) -> RunSpec:
    """Read the keys that Prefect's blocks hold into this process's environment, where alone they are kept.

    Raises `ConfigError` where the server has no such block.
    """
    variables = {block: f"MALT_KEY_{block.upper().replace('-', '_')}" for block in spec.key_blocks}
    for block, variable in variables.items():
        try:
            secret = cast("Secret[str]", await Secret.aload(block))
        except ValueError as missing:
            raise ConfigError(
                f"api_key_block = {block!r}: the Prefect server has no Secret block of that name; make one in its UI"
            ) from missing
        os.environ[variable] = secret.get()
    return spec.with_keys_from(variables)


class Grown(NamedTuple):
    """What became of some questions: what is missing, and what each role used."""

    shortfall: Shortfall
    tally: Tally


@task(name="grow batch", task_run_name="grow {batch[0].question_id} and on", cache_policy=NO_CACHE)
def grow_batch(batch: Sequence[Question], spec: RunSpec, settings: Settings, asks: frozenset[Role], run: str) -> Grown:
    """Ask for all that a batch of questions needs; the answers are in the store when this returns."""
    spec, prompts = asyncio.run(keyed(spec)), prompts_of(spec.prompts)
    expect_store(settings.store)
    try:
        ask = asker_of_run(run, batch, spec, settings, asks)
        shortfall = ask.session.run(ask_all(batch, spec, prompts, ask, beginning(ask, spec, prompts)))
    except RunStopped as stop:  # which came before this began
        return Grown(Shortfall((), str(stop)), Tally())
    except KeyboardInterrupt:  # as Ray tells a task to stop
        stop_sessions(run)
        raise
    return Grown(shortfall, Tally(ask.tally.roles))


@task(name="expand", task_run_name="{title}", cache_policy=NO_CACHE)
async def expand(title: str, request: CompletionRequest, ask: SessionCompleter) -> State[Any]:  # noqa: ARG001 - names the task run
    """Ask one role for all children of a node: `Cached` where the store had them, `Failed` where they cannot be had."""
    try:
        children = await ask(request)
    except MaltError as error:
        return Failed(message=str(error), data=error)
    return Completed(name=expansion_state(children), data=children)


def expansion_state(children: Sequence[Completion]) -> str | None:
    """Name the state of an expansion after what a reader of the graph should notice."""
    if any(child.finish_reason == FinishReason.LENGTH for child in children):
        return "Truncated"
    return "Cached" if all(child.cached for child in children) else None


@task(name="grade", task_run_name="grade {question_id}", cache_policy=NO_CACHE)
async def grade_tree(
    question_id: str,  # noqa: ARG001 - names the task run
    tree: Tree,
    spec: RunSpec,
    prompts: PromptSet,
    ask: SessionCompleter,
) -> State[Any]:
    """Grade one tree's leaves; the state says how many are right."""
    try:
        valued = await value(tree, spec, prompts, ask)
    except MaltError as error:
        return Failed(message=str(error), data=error)
    missing = valued.tree.failures[len(tree.failures) :]
    if missing:
        return Failed(message=missing[0].reason, data=valued)
    return Completed(message=verdict(valued), data=valued)


def verdict(valued: ValuedTree) -> str:
    """Say in a few words how a tree came out."""
    leaves = [grade for address, grade in valued.grades.items() if address.is_leaf]
    right = sum(grade.outcome is Outcome.RIGHT for grade in leaves)
    return f"{right} of {len(leaves)} leaves right"


class BranchAsker:
    """A `Complete` that makes every expansion a task run, joined in the graph to the one that made its parent."""

    def __init__(self, ask: SessionCompleter) -> None:
        self.ask = ask
        self._task_runs: dict[tuple[str, Address], UUID] = {}

    async def __call__(self, request: CompletionRequest) -> Sequence[Completion]:
        """Ask within a task run; raises what the request raised."""
        parent = Address.parse(request.address)
        above = self._task_runs.get((request.question_id, parent.parent)) if parent else None
        title = f"{request.role} {request.question_id}" + (f"/{parent}" if parent else "")
        taken = {"title": title, "request": whole(request), "ask": self.ask}
        state = await run_task(expand, taken, [above] if above else [])
        self._task_runs[request.question_id, parent] = cast("UUID", state.state_details.task_run_id)
        data = await state.aresult(raise_on_failure=False)
        if isinstance(data, BaseException):
            raise data
        return cast("Sequence[Completion]", data)

    async def grade(self, tree: Tree, spec: RunSpec, prompts: PromptSet) -> tuple[FailedBranch, ...]:
        """Grade a grown tree within a task run, and return all that is missing of it."""
        question_id = tree.question.question_id
        leaves = [
            task_run
            for (question, parent), task_run in self._task_runs.items()
            if question == question_id and len(parent) == 2
        ]
        taken = {"tree": whole(tree), "spec": whole(spec), "prompts": whole(prompts), "ask": self.ask}
        state = await run_task(grade_tree, {"question_id": question_id, **taken}, leaves)
        valued = await state.aresult(raise_on_failure=False)
        if isinstance(valued, BaseException):
            raise valued
        return cast("ValuedTree", valued).tree.failures


async def run_task(tracked: Task[Any, Any], taken: dict[str, Any], after: Sequence[UUID]) -> State[Any]:
    """Run a task here, joined in the graph to the task runs that it comes after, as task runners do.

    Calling it would tell the server of `Pending` too, and build and search a state for every edge: together a third of
    what a task run costs.
    """
    edges: dict[str, set[RunInput]] = {next(iter(taken)): {TaskRunResult(id=task_run) for task_run in after}}
    task_run = await tracked.create_local_run(parameters=taken, extra_task_inputs=edges)
    state = await run_task_async(tracked, task_run=task_run, parameters=taken, return_type="state")
    return cast("State[Any]", state)
