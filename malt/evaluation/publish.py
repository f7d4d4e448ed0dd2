"""Publishing an evaluation: the store's answers in, an immutable version out."""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pyarrow as pa

from malt.config.roles import PLAYERS
from malt.config.settings import Settings
from malt.datasets.manifest import (
    Failure,
    FileEntry,
    Parent,
    QuestionsUsed,
    content_digest,
    published_config,
    write_manifest,
)
from malt.datasets.stats.counts import as_failure, code_version
from malt.datasets.version.folders import describe_file, discard, open_staging, place_next
from malt.evaluation.card import CARD_FILE, render_card
from malt.evaluation.job import EvaluationJob
from malt.evaluation.manifest import EvaluationManifest, Player
from malt.evaluation.report import REPORT_FILE, render_report
from malt.evaluation.summarise import summarise
from malt.evaluation.summary import Summary
from malt.evaluation.systems import Lineup
from malt.evaluation.table import ANSWERS_FILE, make_frame, questions_digest, write_answers
from malt.evaluation.version import SHELF, SUMMARY_FILE, EvaluationVersion, open_evaluation_folder
from malt.questions.readers import strip_secrets
from malt.trees.tree import FailedBranch


def publish(
    job: EvaluationJob, table: pa.Table, failures: tuple[FailedBranch, ...], settings: Settings
) -> EvaluationVersion:
    """Make answers the next version of the evaluation; return the newest one if that has the same content."""
    folder = settings.data_dir / SHELF / job.spec.name
    staging = open_staging(folder)
    try:
        summary = summarise(job.spec, make_frame(table))
        files = {ANSWERS_FILE: describe_file(staging / ANSWERS_FILE, write_answers(table, staging / ANSWERS_FILE))}
        files[SUMMARY_FILE] = write_page(staging / SUMMARY_FILE, summary.model_dump_json(indent=2) + "\n")
        describe = partial(describe_version, job, table, files, tuple(map(as_failure, failures)))
        placed = place_next(staging, folder, describe, partial(write_pages, staging, summary, table))
    finally:
        discard(staging)
    opened = open_evaluation_folder(placed.path)
    return EvaluationVersion(opened.path, opened.manifest, placed.created)


def describe_version(
    job: EvaluationJob,
    table: pa.Table,
    files: dict[str, FileEntry],
    failures: tuple[Failure, ...],
    number: int,
    parent: Parent | None,
) -> EvaluationManifest:
    """Say what these answers are as a version of this number."""
    evaluator, source = job.spec.evaluator, (job.evaluate.questions or job.spec.questions).source
    return EvaluationManifest(
        name=job.spec.name,
        version=number,
        created_at=datetime.now(UTC),
        content_sha256=content_digest(files),
        parent=parent,
        files=files,
        config=published_config(job.spec),
        prompts=job.prompts.digests,
        questions=QuestionsUsed(source=strip_secrets(source), sha256=questions_digest(table)),
        models={each.system: describe_cast(each) for each in job.lineups if each.kind == "chain"},
        grader=(*evaluator.kind, *([evaluator.model] if "llm" in evaluator.kind else [])),
        code=code_version(),
        failures=failures,
    )


def describe_cast(lineup: Lineup) -> dict[str, Player]:
    """Say who plays in a system."""
    return {
        role.value: Player(model=model.model, digest=model.weights, sampling=model.sampling)
        for role, model in ((role, lineup.spec.roles[role]) for role in PLAYERS)
        if role in lineup.roles
    }


def write_pages(staging: Path, summary: Summary, table: pa.Table, manifest: EvaluationManifest) -> None:
    """Write what tells of the version by its number: the card, the report and the manifest."""
    pages = {
        CARD_FILE: render_card(manifest, summary),
        REPORT_FILE: render_report(manifest, summary, make_frame(table)),
    }
    entries = {name: write_page(staging / name, text) for name, text in pages.items()}
    write_manifest(manifest.model_copy(update={"files": {**manifest.files, **entries}}), staging)


def write_page(path: Path, text: str) -> FileEntry:
    """Write a text, and describe the file."""
    path.write_text(text, encoding="utf-8")
    return describe_file(path)
