"""Publishing of shards as an immutable version. Streams: memory does not grow with the number of trees."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Self

from malt.config.roles import PLAYERS, Role
from malt.config.spec import RunSpec
from malt.datasets.manifest import (
    CARD_FILE,
    REPORT_FILE,
    FileEntry,
    Manifest,
    Parent,
    QuestionsUsed,
    content_digest,
    published_config,
    read_manifest,
)
from malt.datasets.pages.card import render_card
from malt.datasets.pages.page import render_report
from malt.datasets.pages.sample import TreeSample
from malt.datasets.publish.shard import Shard, VersionStats
from malt.datasets.rows.files import JsonExamples, ParquetRows, RowsDigest
from malt.datasets.rows.tables import KINDS, QUESTION_COLUMNS, QUESTIONS, QUESTIONS_FILE, SCHEMAS, training_file
from malt.datasets.stats.counts import as_failure, code_version, growth_of, ledger_of
from malt.datasets.stats.figures import find_suspicions, why_withheld
from malt.datasets.version.dataset_version import DatasetVersion
from malt.datasets.version.folders import describe_file, discard, name_version, open_staging, place_next, put_in_place
from malt.errors import NothingToPublish
from malt.questions.readers import strip_secrets
from malt.questions.screening import Screening


@dataclass(frozen=True)
class Provenance:
    """Origin of a version that its manifest records besides the spec."""

    prompts: Mapping[str, str]
    """SHA-256 of every prompt file, by its path below the set's folder."""
    screening: Screening = field(default_factory=Screening)
    """Exclusions, duplicates and test sets of the questions, found before any model call."""
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


class VersionWriter:
    """Writer of one version in a staging folder of the dataset's folder, discarded on exit unless it was published.

    A crash at any moment leaves the newest version intact, whether that is the old one or the new one.
    """

    def __init__(self, spec: RunSpec, provenance: Provenance, folder: Path) -> None:
        self.spec = spec
        self.provenance = provenance
        self.folder = folder
        self.stats = VersionStats(spec)
        self._asked = RowsDigest(QUESTIONS, QUESTION_COLUMNS)
        self._staging = open_staging(self.folder)
        for kind in KINDS:
            (self._staging / kind).mkdir()
        self._tables = {path: ParquetRows(self._staging / path, schema) for path, schema in SCHEMAS.items()}
        about = {training_file(role): training_metadata(spec, role, provenance.created_at) for role in PLAYERS}
        self._lines = {path: JsonExamples(self._staging / path, metadata) for path, metadata in about.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            with suppress(OSError):  # the disk is full: the last bytes cannot be flushed, and are not needed
                file.discard()
        discard(self._staging)

    def add(self, shard: Shard) -> None:
        """Append a shard; shards must come in the order of the questions.

        Incomplete trees leave a row in `questions.parquet` and their failures in the manifest.
        """
        self.stats.merge(shard.stats)
        for path, rows in shard.tables.items():
            self._tables[path].add(rows)
            if path == QUESTIONS_FILE:
                self._asked.update(rows)
        for path, lines in shard.lines.items():
            self._lines[path].add(lines)

    def publish(self) -> DatasetVersion:
        """Finish the files and make them the next version; return the newest one if that has the same content.

        Raises `NothingToPublish` where no tree is complete.
        """
        if not self.stats.trees.counts.complete:
            asked = self.stats.trees.counts.questions
            raise NothingToPublish(
                f"no version of {self.spec.name!r} was made: none of {asked} questions has a whole tree; "
                "run again to ask for what is missing"
            )
        files = self.finish()
        placed = place_next(self._staging, self.folder, partial(self.manifest, files), self.name)
        return DatasetVersion(placed.path, read_manifest(placed.path), placed.created)

    def finish(self) -> dict[str, FileEntry]:
        return {path: describe_file(self._staging / path, file.close()) for path, file in self._files.items()}

    @property
    def _files(self) -> dict[str, ParquetRows | JsonExamples]:
        return {**self._tables, **self._lines}

    def manifest(self, files: dict[str, FileEntry], number: int, parent: Parent | None) -> Manifest:
        """Return the manifest of these finished files as the version `number`, with what is suspicious about it."""
        manifest = self._describe(files, number, parent)
        doubts = {"suspicions": tuple(find_suspicions(manifest)), "withheld": why_withheld(manifest)}
        return manifest.model_copy(update=doubts)

    def _describe(self, files: dict[str, FileEntry], number: int, parent: Parent | None) -> Manifest:
        trees, selection = self.stats.trees, self.stats.selection
        usage = dict(trees.usage)
        if self.stats.judge is not None:
            usage[Role.EVALUATOR] = self.stats.judge
        return Manifest(
            name=self.spec.name,
            version=number,
            created_at=self.provenance.created_at,
            content_sha256=content_digest(files),
            parent=parent,
            files=files,
            config=published_config(self.spec),
            prompts=dict(self.provenance.prompts),
            questions=QuestionsUsed(source=strip_secrets(self.spec.questions.source), sha256=self._asked.hexdigest()),
            code=code_version(),
            counts=trees.counts,
            growth=growth_of(self.spec, trees.counts),
            screening=self.provenance.screening.counts,
            selection=selection.counts,
            lengths=selection.lengths,
            length_bias=selection.length_bias,
            diagnostics=self.stats.diagnostics.result,
            tokens={role: count.tokens for role, count in usage.items()},
            cost={role: count.cost for role, count in usage.items()},
            ledger=ledger_of(usage),
            failures=tuple(map(as_failure, trees.failures)),
        )

    def name(self, manifest: Manifest) -> None:
        """Write the files that state the version's number: card, report and manifest."""
        name_version(manifest, render_pages(manifest, self.stats.sample), self._staging)

    def put(self, place: Path) -> None:
        """Move the named version to `place`, over a damaged version if one is there; the manifest is moved last."""
        put_in_place(self._staging, place)


def training_metadata(spec: RunSpec, role: Role, created_at: datetime) -> dict[str, str]:
    """Return the metadata of a `*_training.json` file, without the number of its examples."""
    model = spec.roles[role].model
    return {"timestamp": created_at.isoformat(), "model": model, "role": role.value, "dataset": spec.name}


def render_pages(manifest: Manifest, trees: TreeSample) -> dict[str, str]:
    """Render the card and the report of a version, by file name, from its manifest and a sample of its trees."""
    return {CARD_FILE: render_card(manifest), REPORT_FILE: render_report(manifest, trees.chosen)}
