"""Assembly: a dataset version out of the store. Nobody is asked anything.

Trees are grown again by the growth that asked for them, over what the store recalls, a window of questions at a time:
memory does not grow with their number.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from malt.datasets.census import UsageCount
from malt.datasets.publishing import Provenance, publish
from malt.datasets.version import DatasetVersion
from malt.errors import NothingToPublish
from malt.inputs import Inputs, windows
from malt.llm.asker import Recall
from malt.llm.completion import Complete, Completion, CompletionRequest
from malt.llm.store import Store
from malt.questions import Question
from malt.settings import Settings
from malt.spec import Role, RunSpec
from malt.trees.assessment import asks_judge, assess
from malt.trees.credit import ValuedTree
from malt.trees.tree import FailedBranch


class Assembled(NamedTuple):
    """What the store amounts to: a version of the complete trees, None where there is none, and what is missing."""

    version: DatasetVersion | None
    failures: tuple[FailedBranch, ...]


def assemble_version(inputs: Inputs, spec: RunSpec, settings: Settings) -> Assembled:
    """Publish the trees that the store holds whole."""
    failures: list[FailedBranch] = []
    judge = UsageCount()

    def noted(trees: Iterator[ValuedTree]) -> Iterator[ValuedTree]:
        for valued in trees:
            failures.extend(valued.tree.failures)
            yield valued

    with Store(settings.store) as store:
        trees = noted(valued_trees(inputs, spec, store, judge))
        provenance = Provenance(inputs.prompts.digests, inputs.screening, judge if asks_judge(spec) else None)
        try:
            version = publish(trees, spec, provenance, settings.datasets_dir)
        except NothingToPublish:
            version = None
    return Assembled(version, tuple(failures))


def valued_trees(inputs: Inputs, spec: RunSpec, store: Store, judge: UsageCount) -> Iterator[ValuedTree]:
    """Yield every question's tree in the order of the question file; what the store lacks is a failed branch.

    What the judge's completions behind complete trees took is added to `judge`.
    """
    with asyncio.Runner() as runner:
        for window in windows(inputs.questions):
            for valued, judged in runner.run(assess_window(window, inputs, spec, store)):
                if valued.tree.complete:
                    for completion in judged:
                        judge.add(completion)
                yield valued


class Assessed(NamedTuple):
    """A question's tree, and what the judge said of it: each completion once, though equal answers share one."""

    valued: ValuedTree
    judged: tuple[Completion, ...]


async def assess_window(window: Sequence[Question], inputs: Inputs, spec: RunSpec, store: Store) -> list[Assessed]:
    """Assess some questions from the store alone."""
    recall = Recall(store.rows(question.question_id for question in window))

    async def assessed(question: Question) -> Assessed:
        noting = JudgeNoted(recall)
        valued = await assess(question, spec, inputs.prompts, noting)
        return Assessed(valued, tuple(noting.judged[key] for key in sorted(noting.judged)))

    return await asyncio.gather(*(assessed(question) for question in window))


class JudgeNoted:
    """A `Complete` that keeps the judge's completions by key."""

    def __init__(self, complete: Complete) -> None:
        self.complete = complete
        self.judged: dict[str, Completion] = {}

    async def __call__(self, request: CompletionRequest) -> Sequence[Completion]:
        """Return the samples, and note them where they are the judge's."""
        completions = await self.complete(request)
        if request.role is Role.EVALUATOR:
            self.judged.update((completion.key, completion) for completion in completions)
        return completions
