"""Building: the store's trees -> a dataset version. Nobody is asked anything.

Trees are replayed by the growth that asked for them, and written as they come: memory does not grow with their number.
"""

from typing import NamedTuple

from malt.datasets.publish.shard import NONE_KNOWN, Known, stored_shards
from malt.datasets.publish.writer import Provenance, VersionWriter
from malt.datasets.version.dataset_version import DatasetVersion
from malt.engine.job import Job
from malt.errors import NothingToPublish
from malt.trees.replay import infrequent_gc
from malt.trees.tree import FailedBranch


class Built(NamedTuple):
    """What the store amounts to: a version of the complete trees, None where there is none, and what is missing."""

    version: DatasetVersion | None
    failures: tuple[FailedBranch, ...]
    reason: str = ""
    """Why there is no version."""


def build(job: Job, known: Known = NONE_KNOWN) -> Built:
    """Publish the trees that the store holds whole; those in `known`, by question id, need not be replayed."""
    provenance = Provenance(job.prompts.digests, job.screening)
    with infrequent_gc(), VersionWriter(job.spec, provenance, job.settings.datasets_dir / job.spec.name) as writer:
        for shard in stored_shards(job.questions, job.source, job.screening, writer.stats, known=known):
            writer.add(shard)
        failures = tuple(writer.stats.trees.failures)
        try:
            return Built(writer.publish(), failures)
        except NothingToPublish as nothing:
            return Built(None, failures, str(nothing))
