"""Assembly: a dataset version out of the store. Nobody is asked anything.

Trees are grown again by the growth that asked for them, over what the store recalls, and written as they come: memory
does not grow with their number.
"""

from typing import NamedTuple

from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.datasets.publish.shard import stored_shards
from malt.datasets.publish.writer import Provenance, VersionWriter
from malt.datasets.version.dataset_version import DatasetVersion
from malt.engine.job import Inputs
from malt.errors import NothingToPublish
from malt.trees.replay import Source, collecting_seldom
from malt.trees.tree import FailedBranch


class Assembled(NamedTuple):
    """What the store amounts to: a version of the complete trees, None where there is none, and what is missing."""

    version: DatasetVersion | None
    failures: tuple[FailedBranch, ...]


def assemble_version(inputs: Inputs, spec: RunSpec, settings: Settings) -> Assembled:
    """Publish the trees that the store holds whole."""
    source = Source(spec, inputs.prompts, settings.store, patience_s=settings.store_patience_s)
    provenance = Provenance(inputs.prompts.digests, inputs.screening)
    with collecting_seldom(), VersionWriter(spec, provenance, settings.datasets_dir / spec.name) as writer:
        for shard in stored_shards(inputs.questions, source, inputs.screening, writer.stats):
            writer.add(shard)
        try:
            version = writer.publish()
        except NothingToPublish:
            version = None
    return Assembled(version, tuple(writer.stats.trees.failures))
