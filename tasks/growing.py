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
"""State of a branch below one that failed. It is an end: a run's graph goes on for as long as a task run has none."""
POLL_S = 0.5
"""How often a flow that waits for its task runs looks whether the run was stopped."""
_FAILURES_LOGGED = 20
"""Of one batch; the artifact of failed branches has more."""


class Branch:
    """A node of a question's tree whose children are asked for; the root to begin with."""

    def __init__(self, question: Question, node: Address = ROOT) -> None:
        self.question = question
        self.node = node

    @property
    def role(self) -> Role:
        return PLAYERS[len(self.node)]

    def __str__(self) -> str:
        return f"{self.role} {self.question.question_id}" + (f"/{self.node}" if self.node else "")


class Answers:
    """What one request came to, and the texts above that it went by.

    This class and `Graded` are none that Prefect looks into. It joins whatever equals a part of a result by identity to
    the task that gave it, and all empty tuples are one.
    """

    def __init__(
        self, texts: tuple[str, ...], completions: Mapping[int, Completion], failure: RequestFailed | None = None
    ) -> None:
        """`completions` are those that came, by sample number; `failure` says why others did not."""
        self.texts = texts
        self.completions = completions
        self.failure = failure


class Graded:
    """What grading a tree came to; None where it is not whole."""

    def __init__(self, assessed: Assessed | None) -> None:
        self.assessed = assessed


class Grower:
    """What the task runs of a flow run grow trees with; they share it, as they share a process."""

    def __init__(self, job: Job, run: Run) -> None:
        self.job = job
        self.ask = asker_for(job, run)

    def build_request(self, branch: Branch, parent: object) -> CompletionRequest | None:
        """Return the request for a node's children, None where the node itself is missing from its parent's answers."""
        texts = find_texts(branch, parent)
        if texts is None:
            return None
        return build_request(branch.question, branch.node, texts, self.job.spec, self.job.prompts)

    def is_stored(self, request: CompletionRequest) -> bool:
        return not self.ask.missing(request)

    def expand(self, branch: Branch, parent: object, request: CompletionRequest) -> Answers:
        """Ask for a node's children; what could not be had is the answers' failure."""
        texts = find_texts(branch, parent) or ()
        try:
            return Answers(texts, dict(enumerate(self.ask.session.run(self.ask(request)))))
        except RequestFailed as failure:
            is_final = request.role not in self.ask.asks or self.ask.session.was_rejected(request)
            reason = Rejected(str(failure)) if is_final else RequestFailed(str(failure))
            return Answers(texts, failure.completed, reason)

    def cancelled_if_stopped(self, state: State[Any]) -> State[Any]:
        """Return the state of a task run that lacks texts; in a run that was stopped it is cancelled, no failure."""
        stopped = self.ask.session.stopped
        return Cancelled(message=str(stopped)) if isinstance(stopped, RunStopped) else state

    def assess(self, question: Question) -> Assessed:
        """Grade and value a question's tree, whose texts the store has; the judge is asked."""
        return self.ask.session.run(assess_noting_judge(question, self.job.source, self.ask))


def find_texts(branch: Branch, parent: object) -> tuple[str, ...] | None:
    """Return the texts from the root to a branch's node, which is among its parent's answers; None where it is not."""
    if not branch.node:
        return ()
    if not isinstance(parent, Answers) or branch.node[-1] not in parent.completions:
        return None
    return (*parent.texts, parent.completions[branch.node[-1]].text)


def may_pass(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001 - as Prefect calls it
    """Whether a failed branch is worth another try: not where its prompt is refused, or the run must stop."""
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
        return grower.cancelled_if_stopped(
            Failed(name=NOT_READY, message="the text that it is asked about could not be had")
        )
    try:
        answers = grower.expand(branch, parent, request)
    except RunStopped as stop:
        return Cancelled(message=str(stop))
    except MaltError as error:
        return Failed(message=str(error), data=error)
    if answers.failure is not None:
        return Failed(message=str(answers.failure), data=answers)
    is_cut = any(one.finish_reason == FinishReason.LENGTH for one in answers.completions.values())
    key = tree_key(grower.job.spec.name, branch.question.question_id)
    return Completed(name="Truncated" if is_cut else None, message=f"texts: artifact {key}", data=answers)


@task(task_run_name="grade {question.question_id}", persist_result=False)
def grade(question: Question, answers: Sequence[object], grower: Grower) -> State[Any]:
    """Grade one tree's leaves; the state says how many are right."""
    wanted = len(answers) * grower.job.spec.roles[PLAYERS[-1]].samples
    if missing := wanted - sum(len(each.completions) for each in answers if isinstance(each, Answers)):
        told = f"not graded: {missing} of its {wanted} refinements are missing"
        return grower.cancelled_if_stopped(Failed(message=told, data=Graded(None)))
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
    """Say in a few words how a tree came out."""
    leaves = [grade for address, grade in valued.grades.items() if address.is_leaf]
    right = sum(grade.outcome is Outcome.RIGHT for grade in leaves)
    return f"{right} of {len(leaves)} leaves right"


def children_of(
    branches: Sequence[Branch], answers: Sequence[Future], spec: RunSpec
) -> tuple[list[Branch], list[Future]]:
    """Return the next level's branches, and the future that each one's text comes from."""
    children = [
        (Branch(branch.question, branch.node.child(sample)), future)
        for branch, future in zip(branches, answers, strict=True)
        for sample in range(spec.roles[branch.role].samples)
    ]
    return [child for child, _ in children], [future for _, future in children]


def by_question(answers: Sequence[Future], questions: int) -> list[Sequence[Future]]:
    """Cut the last level's futures into those of each question."""
    each = len(answers) // questions
    return [answers[start : start + each] for start in range(0, len(answers), each)]


class Grown(NamedTuple):
    """What came of some questions, and the futures of their graded trees, where each is a task run."""

    filled: Filled
    trees: Sequence[Future]


async def collect(expanded: Sequence[tuple[Branch, Future]], trees: Sequence[Future], grower: Grower) -> Grown:
    """Wait for all task runs, and return what failed. Raises what is nobody's answer: a wrong key, a broken store."""
    session = grower.ask.session
    futures = cast("list[PrefectConcurrentFuture[Any]]", [*(future for _, future in expanded), *trees])
    await run_to_end(lambda: wait_for(futures, session), session.close, STOP_SECONDS)
    if session.stopped is not None:
        if not isinstance(session.stopped, RunStopped):
            raise session.stopped
        return Grown(Filled(Shortfall((), str(session.stopped)), grower.ask.tally), ())
    failures = [failed for branch, future in expanded for failed in await find_failures(future, branch)]
    failures += [failed for future in trees for failed in await find_failures(future)]
    return Grown(Filled(Shortfall(tuple(failures), None), grower.ask.tally), trees)


def wait_for(futures: Sequence[PrefectConcurrentFuture[Any]], session: Session) -> None:
    """Wait for task runs; once the session has stopped, those that have not begun never do."""
    for future in futures:
        while not future.wrapped_future.done():
            future.wait(POLL_S)
            if session.stopped is not None:
                for pending in futures:
                    pending.wrapped_future.cancel()
        if not future.wrapped_future.cancelled():
            future.wait()  # it keeps the state; else that is asked of the server, which has it without what it came to


async def find_failures(future: Future, branch: Branch | None = None) -> tuple[FailedBranch, ...]:
    """Return what a task run could not get. Raises an error that is not about its answers."""
    if future.state.name == NOT_READY or not (future.state.is_failed() or future.state.is_crashed()):
        return ()
    found = await future.state.aresult(raise_on_failure=False)
    if isinstance(found, Graded):
        return found.assessed.valued.tree.failures if found.assessed else ()
    if branch is None or not isinstance(found, Answers):
        raise found
    return (FailedBranch(branch.question.question_id, str(branch.node), branch.role, str(found.failure)),)


@task(task_run_name="{label}", persist_result=False)
def grow_batch(job: Job, run: Run, label: str) -> State[Any]:  # noqa: ARG001 - names the task run
    """Ask for all that a batch of questions needs; the answers are in the store when this returns."""
    try:
        filled = fill_batch(replace(job, spec=asyncio.run(with_block_keys(job.spec))), run)
    except KeyboardInterrupt:  # as Ray tells a task to stop
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
