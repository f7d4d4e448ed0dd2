"""Building of a dataset version from the store's trees, without model calls; and RunSummary (`malt run --json`).

Trees are replayed by the code that grew them, and written one shard at a time: memory does not grow with their number.
"""

from dataclasses import asdict
from typing import Any, NamedTuple

from pydantic import Field

from malt.datasets.publish.shard import NONE_KNOWN, Known, stored_shards
from malt.datasets.publish.writer import Provenance, VersionWriter
from malt.datasets.version.dataset_version import DatasetVersion
from malt.engine.job import Job
from malt.engine.run import Filled, Finished
from malt.errors import NothingToPublish
from malt.sanitize import code_span, escape_markdown, markdown_table
from malt.trees.pipeline import Shortfall
from malt.trees.replay import infrequent_gc
from malt.trees.tree import FailedBranch


class Built(NamedTuple):
    """Result of a build: the version of the complete trees, None without any, and the branches that the store lacks."""

    version: DatasetVersion | None
    failures: tuple[FailedBranch, ...]
    reason: str = ""
    """Reason why there is no version."""


def build(job: Job, known: Known = NONE_KNOWN) -> Built:
    """Publish the complete trees of the store; the trees in `known` are not replayed."""
    provenance = Provenance(job.prompts.digests, job.screening)
    with infrequent_gc(), VersionWriter(job.spec, provenance, job.settings.datasets_dir / job.spec.name) as writer:
        for shard in stored_shards(job.questions, job.source, job.screening, writer.stats, known=known):
            writer.add(shard)
        failures = tuple(writer.stats.trees.failures)
        try:
            return Built(writer.publish(), failures)
        except NothingToPublish as error:
            return Built(None, failures, str(error))


class RunSummary(Finished):
    """Result and usage of a run."""

    dataset: str
    complete: int
    """Questions whose tree is complete."""
    failed_branches: int
    waits: str | None = None
    """State of the batches still in flight, if the run did not wait for them."""
    version: int | None = None
    """Number of the version that the run published or found unchanged; None without a version."""
    created: bool = False
    """Whether that version is new; content equal to the newest version's creates none."""
    path: str | None = None
    content_sha256: str | None = None
    rows: dict[str, int] = Field(default_factory=dict)
    """Number of rows in each file of the version."""
    outcomes: dict[str, int] = Field(default_factory=dict)
    """Number of leaves of the version by outcome."""
    graded_by: dict[str, int] = Field(default_factory=dict)
    """Number of leaves of the version by the kind of grader that decided."""
    unknown: dict[str, int] = Field(default_factory=dict)
    """Number of leaves of the version with an unknown grade, by reason."""
    suspicions: tuple[str, ...] = ()
    """Signs that the version may be faulty, a sentence each."""
    withheld: str | None = None
    """Reason why `latest` does not name the version."""
    unread: int = 0
    """Wrong leaves whose answer no grader could read completely."""
    disputed: int = 0
    """Leaves on which two methods of comparing mathematics disagree."""

    @property
    def exit_code(self) -> int:
        """0: done; 1: failed branches, or no version for `latest`; 3: stopped at a limit; 4: batches are in flight."""
        if self.stopped is not None:
            return 3
        if self.waits is not None:
            return 4
        return 1 if self.failed_branches or self.version is None or self.withheld else 0

    @property
    def reference(self) -> str:
        return "no version" if self.version is None else f"{self.dataset}@v{self.version}"

    @property
    def sentence(self) -> str:
        if self.stopped is not None:
            return f"stopped: {self.stopped}; {self.complete} of {self.questions} questions complete"
        if self.waits is not None:
            return self.waits
        if self.failed_branches:
            return (
                f"{self.failed_branches} failed branches, {self.complete} of {self.questions} questions complete; "
                "run again to ask for just what is missing"
            )
        if self.version is None:
            return (
                f"no version: the store has no whole tree of {self.questions} questions; was it moved during the run?"
            )
        if self.withheld is not None:
            return f"{self.reference} was not made latest: {self.withheld}"
        return f"{self.reference}: {self.complete} questions complete"

    @property
    def markdown(self) -> str:
        cost = "unknown" if self.cost_usd is None else f"${self.cost_usd:.4f}"
        suspicions = "".join(f"> suspicious: {escape_markdown(each)}\n\n" for each in self.suspicions)
        files = markdown_table(("file", "rows"), [(code_span(file), rows) for file, rows in self.rows.items() if rows])
        leaves = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.items() if count)
        graded_by = ", ".join(f"{count} {kind}" for kind, count in self.graded_by.items())
        return (
            f"# {self.reference}\n\n{escape_markdown(self.sentence)}\n\n{suspicions}"
            f"- leaves: {leaves or 'none'}; graded by: {graded_by or 'none'}; "
            f"not read: {self.unread}, disputed: {self.disputed}\n"
            f"- requests: {self.requests}, completions: {self.completions}, from the store: {self.cached_completions}\n"
            f"- tokens: {self.prompt_tokens} prompt, {self.completion_tokens} completion; cost: {cost}\n"
            f"- folder: {code_span(str(self.path))}\n- content: `{self.content_sha256}`\n\n{files}\n"
        )


def summarise(job: Job, filled: Filled, built: Built | None, wall_s: float) -> RunSummary:
    """Combine a run's figures; `built` is None if nothing was to be published."""
    shortfall, questions = _with_missing_branches(filled.shortfall, built), len(job.questions)
    published = {} if built is None or built.version is None else _describe(built.version)
    return RunSummary(
        **asdict(filled.tally.total),
        **{"complete": _complete_questions(questions, shortfall), **published},
        dataset=job.spec.name,
        questions=questions,
        failed_branches=len(shortfall.failures),
        wall_s=round(wall_s, 2),
        stopped=shortfall.stopped,
        waits=shortfall.waits,
        failures=shortfall.failures,
    )


def _describe(version: DatasetVersion) -> dict[str, Any]:
    manifest, diagnostics = version.manifest, version.manifest.diagnostics
    return {
        "version": version.number,
        "created": version.created,
        "path": str(version.path),
        "content_sha256": manifest.content_sha256,
        "complete": manifest.counts.complete,
        "rows": manifest.rows,
        "outcomes": manifest.counts.outcomes,
        "graded_by": diagnostics.graded_by,
        "unknown": diagnostics.unknown,
        "suspicions": manifest.suspicions,
        "withheld": manifest.withheld,
        "unread": diagnostics.unread.count,
        "disputed": diagnostics.disputed.count,
    }


def _with_missing_branches(shortfall: Shortfall, built: Built | None) -> Shortfall:
    """Return a shortfall with the branches that the build lacked as failures; after a stop, the run's own shortfall."""
    if built is None or shortfall.stopped is not None:
        return shortfall
    return shortfall._replace(failures=built.failures)


def _complete_questions(questions: int, shortfall: Shortfall) -> int:
    """Count the questions without a failed branch; 0 if the run stopped early or waits, as none is known complete."""
    if shortfall.stopped or shortfall.waits:
        return 0
    return questions - len({failure.question_id for failure in shortfall.failures})
