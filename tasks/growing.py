"""Growing under Prefect: a task run expands one node of a tree, grades one tree, or grows a batch of questions."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

from prefect import Task, get_run_logger, task
from prefect.blocks.system import Secret
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectConcurrentFuture, PrefectFuture
from prefect.states import Cancelled, Completed, Failed

from malt.concurrency import run_to_end
from malt.config.roles import PLAYERS, Role
from malt.config.spec import RunSpec
from malt.engine.fill import fill_batch
from malt.engine.job import Job
from malt.engine.run import Filled, Run, asker_for
from malt.errors import ConfigError, MaltError, RunStopped
from malt.grading.grades import Outcome
from malt.llm.client.session import STOP_SECONDS, Session, stop_sessions
from malt.llm.faults import Rejected
from malt.llm.request import Completion, CompletionRequest, FinishReason, RequestFailed
from malt.questions.question import Question
from malt.trees.credit import ValuedTree
from malt.trees.growth import build_request
from malt.trees.pipeline import Shortfall
from malt.trees.replay import Assessed, assess_noting_judge
from malt.trees.tree import Address, FailedBranch
from tasks.artifacts import MOST_TREES, leave_tree, tree_key
from tasks.stored_answers import STORED_ANSWERS

Future = PrefectFuture[Any]

ROOT = Address()
NOT_READY = "NotReady"
"""Final state of a branch below a failed one. Without a final state, the UI's graph of the run would never end."""
POLL_S = 0.5
"""Seconds between checks, by a flow that waits for its task runs, of whether the run was stopped."""
_FAILURES_LOGGED = 20
"""Maximum number of a batch's failures in the log; the artifact of failed branches has more."""


class Branch:
    """A node of a question's tree whose children are to be grown; by default the root."""

    def __init__(self, question: Question, node: Address = ROOT) -> None:
        self.question = question
        self.node = node

    @property
    def role(self) -> Role:
        return PLAYERS[len(self.node)]

    def __str__(self) -> str:
        return f"{self.role} {self.question.question_id}" + (f"/{self.node}" if self.node else "")


class Answers:
    """Completions of one request, and the texts on the path above it.

    This class and `Graded` are opaque to Prefect on purpose: it links each part of a result, by identity, to the task
    that returned it. It would link all tasks whose result has an empty tuple, as Python has only one.
    """

    def __init__(
        self, texts: tuple[str, ...], completions: Mapping[int, Completion], failure: RequestFailed | None = None
    ) -> None:
        """`completions` are keyed by sample number; `failure` is the reason why others are missing."""
        self.texts = texts
        self.completions = completions
        self.failure = failure


class Graded:
    """Result of grading a tree; None for an incomplete tree."""

    def __init__(self, assessed: Assessed | None) -> None:
        self.assessed = assessed


class Grower:
    """Job and completer that all task runs of a flow run share; they run in one process."""

    def __init__(self, job: Job, run: Run) -> None:
        self.job = job
        self.ask = asker_for(job, run)

    def build_request(self, branch: Branch, parent: object) -> CompletionRequest | None:
        """Return the request for a node's children; None if the node itself is missing from its parent's answers."""
        texts = find_texts(branch, parent)
        if texts is None:
            return None
        return build_request(branch.question, branch.node, texts, self.job.spec, self.job.prompts)

    def is_stored(self, request: CompletionRequest) -> bool:
        return not self.ask.missing(request)

    def expand(self, branch: Branch, parent: object, request: CompletionRequest) -> Answers:
        """Ask for a node's children; `failure` of the result is set if some are missing."""
        texts = find_texts(branch, parent) or ()
        try:
            return Answers(texts, dict(enumerate(self.ask.session.run(self.ask(request)))))
        except RequestFailed as failure:
            is_final = request.role not in self.ask.asks or self.ask.session.was_rejected(request)
            reason = Rejected(str(failure)) if is_final else RequestFailed(str(failure))
            return Answers(texts, failure.completed, reason)

    def cancelled_if_stopped(self, state: State[Any]) -> State[Any]:
        """Return `state`, but `Cancelled` if the run was stopped: missing texts are then no failure."""
        stopped = self.ask.session.stopped
        return Cancelled(message=str(stopped)) if isinstance(stopped, RunStopped) else state

    def assess(self, question: Question) -> Assessed:
        """Grade and value a question's tree from the store's texts; asks the judge."""
        return self.ask.session.run(assess_noting_judge(question, self.job.source, self.ask))


def find_texts(branch: Branch, parent: object) -> tuple[str, ...] | None:
    """Return the texts from the root to a branch's node; None if the parent's answers lack the node."""
    if not branch.node:
        return ()
    if not isinstance(parent, Answers) or branch.node[-1] not in parent.completions:
        return None
    return (*parent.texts, parent.completions[branch.node[-1]].text)


def may_pass(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001 - as Prefect calls it
    """Whether a retry of a failed branch may succeed: not if its prompt was refused or the run must stop."""
    return isinstance(state.data, Answers) and not isinstance(state.data.failure, Rejected)


@task(
    task_run_name="{branch}",
    retries=2,
    retry_delay_seconds=[10, 30],
    retry_condition_fn=may_pass,
    cache_policy=STORED_ANSWERS,
    persist_result=True,
)
def expand(branch: Branch, parent: Answers | None, grower: Grower) -> State[Any]:
    """Ask one role for all children of one node, in one request."""
    request = grower.build_request(branch, parent)
    if request is None:
        return grower.cancelled_if_stopped(Failed(name=NOT_READY, message="the text above this branch is missing"))
    try:
        answers = grower.expand(branch, parent, request)
    except RunStopped as stop:
        return Cancelled(message=str(stop))
    except MaltError as error:
        return Failed(message=str(error), data=error)
    if answers.failure is not None:
        return Failed(message=str(answers.failure), data=answers)
    is_truncated = any(each.finish_reason == FinishReason.LENGTH for each in answers.completions.values())
    key = tree_key(grower.job.spec.name, branch.question.question_id)
    return Completed(name="Truncated" if is_truncated else None, message=f"texts: artifact {key}", data=answers)


@task(task_run_name="grade {question.question_id}", persist_result=False)
def grade(question: Question, answers: Sequence[object], grower: Grower) -> State[Any]:
    """Grade one tree's leaves; the state says how many are right."""
    expected = len(answers) * grower.job.spec.roles[PLAYERS[-1]].samples
    if missing := expected - sum(len(each.completions) for each in answers if isinstance(each, Answers)):
        message = f"not graded: {missing} of its {expected} refinements are missing"
        return grower.cancelled_if_stopped(Failed(message=message, data=Graded(None)))
    try:
        assessed = grower.assess(question)
    except RunStopped as stop:
        return Cancelled(message=str(stop))
    except MaltError as error:
        return Failed(message=str(error), data=error)
    if len(grower.job.questions) <= MOST_TREES:
        leave_tree(grower.job.spec.name, assessed.valued)
    if failures := assessed.valued.tree.failures:
        return Failed(message=failures[0].reason, data=Graded(assessed))
    return Completed(message=count_right(assessed.valued), data=Graded(assessed))


def count_right(valued: ValuedTree) -> str:
    """Return how many of a tree's leaves are right, in words."""
    leaves = [grade for address, grade in valued.grades.items() if address.is_leaf]
    right = sum(grade.outcome is Outcome.RIGHT for grade in leaves)
    return f"{right} of {len(leaves)} leaves right"


def children_of(
    branches: Sequence[Branch], answers: Sequence[Future], spec: RunSpec
) -> tuple[list[Branch], list[Future]]:
    """Return the next level's branches, and for each the future of its parent's answers."""
    children = [
        (Branch(branch.question, branch.node.child(sample)), future)
        for branch, future in zip(branches, answers, strict=True)
        for sample in range(spec.roles[branch.role].samples)
    ]
    return [child for child, _ in children], [future for _, future in children]


def by_question(answers: Sequence[Future], questions: int) -> list[Sequence[Future]]:
    """Split the last level's futures by question."""
    size = len(answers) // questions
    return [answers[start : start + size] for start in range(0, len(answers), size)]


class Grown(NamedTuple):
    """Result of growing some questions, and the futures of their graded trees if each tree is a task run."""

    filled: Filled
    trees: Sequence[Future]


async def collect(expanded: Sequence[tuple[Branch, Future]], trees: Sequence[Future], grower: Grower) -> Grown:
    """Wait for all task runs and return the failures. Raises errors of the whole run: a wrong key, a broken store."""
    session = grower.ask.session
    futures = cast("list[PrefectConcurrentFuture[Any]]", [*(future for _, future in expanded), *trees])
    await run_to_end(lambda: wait_for(futures, session), session.close, STOP_SECONDS)
    if session.stopped is not None:
        if not isinstance(session.stopped, RunStopped):
            raise session.stopped
        return Grown(Filled(Shortfall((), str(session.stopped)), grower.ask.tally), ())
    failures = [failure for branch, future in expanded for failure in await find_failures(future, branch)]
    failures += [failure for future in trees for failure in await find_failures(future)]
    return Grown(Filled(Shortfall(tuple(failures), None), grower.ask.tally), trees)


def wait_for(futures: Sequence[PrefectConcurrentFuture[Any]], session: Session) -> None:
    """Wait for task runs; once the session has stopped, cancel those that have not begun."""
    for future in futures:
        while not future.wrapped_future.done():
            future.wait(POLL_S)
            if session.stopped is not None:
                for pending in futures:
                    pending.wrapped_future.cancel()
        if not future.wrapped_future.cancelled():
            future.wait()  # keeps the state with its result: the server's copy of the state has none


async def find_failures(future: Future, branch: Branch | None = None) -> tuple[FailedBranch, ...]:
    """Return the failed branches of a task run. Raises an error that is not about a branch."""
    if future.state.name == NOT_READY or not (future.state.is_failed() or future.state.is_crashed()):
        return ()
    result = await future.state.aresult(raise_on_failure=False)
    if isinstance(result, Graded):
        return result.assessed.valued.tree.failures if result.assessed else ()
    if branch is None or not isinstance(result, Answers):
        raise result
    return (FailedBranch(branch.question.question_id, str(branch.node), branch.role, str(result.failure)),)


@task(task_run_name="{label}", persist_result=False)
def grow_batch(job: Job, run: Run, label: str) -> State[Any]:  # noqa: ARG001 - names the task run
    """Ask for all missing answers of a batch of questions; they are in the store when this returns."""
    try:
        filled = fill_batch(replace(job, spec=asyncio.run(with_block_keys(job.spec))), run)
    except KeyboardInterrupt:  # Ray's way to stop a task
        stop_sessions(run.name)
        raise
    shortfall = filled.shortfall
    if shortfall.stopped is not None:
        return Cancelled(message=shortfall.stopped, data=filled)
    if not shortfall.failures:
        return Completed(data=filled)
    for failed in shortfall.failures[:_FAILURES_LOGGED]:
        get_run_logger().warning("%s/%s: no %s: %s", failed.question_id, failed.address, failed.role, failed.reason)
    return Failed(
        message=f"{len(shortfall.failures)} failed branches; the first: {shortfall.failures[0].reason}", data=filled
    )


async def with_block_keys(spec: RunSpec) -> RunSpec:
    """Load API keys from Prefect's Secret blocks into environment variables of this process, and nowhere else.

    Raises `ConfigError` if the server has no such block.
    """
    variables = {block: f"MALT_KEY_{block.upper().replace('-', '_')}" for block in spec.key_blocks}
    for block, variable in variables.items():
        try:
            secret = cast("Secret[str]", await Secret.aload(block))
        except ValueError as error:
            raise ConfigError(
                f"api_key_block = {block!r}: the Prefect server has no Secret block of that name; make one in its UI"
            ) from error
        os.environ[variable] = secret.get()
    return spec.with_keys_from(variables)
