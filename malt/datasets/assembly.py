"""Assembly: a dataset version out of the store. Nobody is asked anything.

Trees are grown again by the growth that asked for them, over what the store recalls, a window of questions at a time:
memory does not grow with their number.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from malt.datasets.publishing import Provenance, publish
from malt.datasets.version import DatasetVersion
from malt.errors import NothingToPublish
from malt.inputs import Inputs, windows
from malt.llm.asker import Recall
from malt.llm.store import Store
from malt.questions import Question
from malt.settings import Settings
from malt.spec import RunSpec
from malt.trees.assessment import assess
from malt.trees.credit import ValuedTree
from malt.trees.tree import FailedBranch


class Assembled(NamedTuple):
    """What the store amounts to: a version of the complete trees, None where there is none, and what is missing."""

    version: DatasetVersion | None
    failures: tuple[FailedBranch, ...]


def assemble_version(inputs: Inputs, spec: RunSpec, settings: Settings) -> Assembled:
    """Publish the trees that the store holds whole."""
    failures: list[FailedBranch] = []

    def noted(trees: Iterator[ValuedTree]) -> Iterator[ValuedTree]:
        for valued in trees:
            failures.extend(valued.tree.failures)
            yield valued

    with Store(settings.store) as store:
        trees = noted(valued_trees(inputs, spec, store))
        try:
            version = publish(trees, spec, Provenance(inputs.prompts.digests), settings.datasets_dir)
        except NothingToPublish:
            version = None
    return Assembled(version, tuple(failures))


def valued_trees(inputs: Inputs, spec: RunSpec, store: Store) -> Iterator[ValuedTree]:
    """Yield every question's tree in the order of the question file; what the store lacks is a failed branch."""
    with asyncio.Runner() as runner:
        for window in windows(inputs.questions):
            yield from runner.run(assess_window(window, inputs, spec, store))


async def assess_window(window: Sequence[Question], inputs: Inputs, spec: RunSpec, store: Store) -> list[ValuedTree]:
    """Assess some questions from the store alone."""
    recall = Recall(store.rows(question.question_id for question in window))
    return await asyncio.gather(*(assess(question, spec, inputs.prompts, recall) for question in window))
