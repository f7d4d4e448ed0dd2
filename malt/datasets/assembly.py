"""Assembly: a dataset version out of the store. Nobody is asked anything.

Trees are grown again by the growth that asked for them, over what the store recalls, and written as they come: memory
does not grow with their number.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from malt.datasets.census import UsageCount
from malt.datasets.publishing import Provenance, publish
from malt.datasets.version import DatasetVersion
from malt.errors import NothingToPublish
from malt.inputs import Inputs
from malt.questions import Question
from malt.settings import Settings
from malt.spec import RunSpec
from malt.trees.assessment import asks_judge
from malt.trees.credit import ValuedTree
from malt.trees.stored import Source, assess_window, collecting_seldom, made_of_each, windows
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

    provenance = Provenance(inputs.prompts.digests, inputs.screening, judge if asks_judge(spec) else None)
    with collecting_seldom():
        try:
            source = Source(spec, inputs.prompts, settings.store, patience_s=settings.store_patience_s)
            trees = noted(valued_trees(inputs.questions, source, judge))
            version = publish(trees, spec, provenance, settings.datasets_dir)
        except NothingToPublish:
            version = None
    return Assembled(version, tuple(failures))


def valued_trees(questions: Sequence[Question], source: Source, judge: UsageCount) -> Iterator[ValuedTree]:
    """Yield every question's tree, in their order.

    What the judge's completions behind complete trees took is added to `judge`.
    """
    for valued, judged in chain.from_iterable(made_of_each(assess_window, list(windows(questions)), source)):
        if valued.tree.complete:
            for completion in judged:
                judge.add(completion)
        yield valued
