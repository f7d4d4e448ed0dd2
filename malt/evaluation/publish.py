"""Publishing of an evaluation's answers as an immutable version, and verification of a published one."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
from pydantic import ValidationError

from malt.config.roles import PLAYERS
from malt.config.settings import Settings
from malt.datasets.manifest import (
    CARD_FILE,
    REPORT_FILE,
    Failure,
    FileEntry,
    Parent,
    QuestionsUsed,
    content_digest,
    published_config,
)
from malt.datasets.stats.counts import as_failure, code_version
from malt.datasets.version.folders import describe_file, name_version, place_next, staging_in
from malt.datasets.version.published import check_files, check_pages, check_seal
from malt.errors import VersionError
from malt.evaluation.card import render_card
from malt.evaluation.job import EvaluationJob
from malt.evaluation.report import render_report
from malt.evaluation.summarise import summarise
from malt.evaluation.summary import Summary
from malt.evaluation.systems import Lineup
from malt.evaluation.table import (
    ANSWERS_FILE,
    make_frame,
    questions_digest,
    read_answers,
    rows_digest,
    write_answers,
)
from malt.evaluation.version import (
    SUMMARY_FILE,
    EvaluationManifest,
    EvaluationVersion,
    Player,
    open_evaluation_folder,
)
from malt.questions.readers import strip_secrets
from malt.trees.tree import FailedBranch

if TYPE_CHECKING:
    import pandas as pd


def publish(
    job: EvaluationJob, table: pa.Table, failures: tuple[FailedBranch, ...], settings: Settings
) -> EvaluationVersion:
    """Publish answers as the next version; return the newest version instead where it has the same content."""
    folder = settings.evaluations_dir / job.spec.name
    frame = make_frame(table)
    summary = summarise(job.spec, frame)
    with staging_in(folder) as staging:
        answers_path, summary_path = staging / ANSWERS_FILE, staging / SUMMARY_FILE
        summary_path.write_text(summary.model_dump_json(indent=2) + "\n", encoding="utf-8")
        files = {
            ANSWERS_FILE: describe_file(answers_path, write_answers(table, answers_path)),
            SUMMARY_FILE: describe_file(summary_path),
        }
        placed = place_next(
            staging,
            folder,
            partial(_describe_version, job, table, files, tuple(map(as_failure, failures))),
            lambda manifest: name_version(manifest, _render_pages(manifest, summary, frame), staging),
        )
    return replace(open_evaluation_folder(placed.path), created=placed.created)


def _describe_version(
    job: EvaluationJob,
    table: pa.Table,
    files: dict[str, FileEntry],
    failures: tuple[Failure, ...],
    number: int,
    parent: Parent | None,
) -> EvaluationManifest:
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
    models = {role.value: lineup.spec.roles[role] for role in PLAYERS if role in lineup.roles}
    return {role: Player(model=own.model, digest=own.weights, sampling=own.sampling) for role, own in models.items()}


def _render_pages(manifest: EvaluationManifest, summary: Summary, answers: "pd.DataFrame") -> dict[str, str]:
    return {
        CARD_FILE: render_card(manifest, summary),
        REPORT_FILE: render_report(manifest, summary, answers),
    }


# Verification: every digest, and every figure computed again from the answers.


def verify(version: EvaluationVersion) -> list[str]:
    """Return a sentence for each problem, naming the file; nothing where the version is as it was published."""
    needed = (ANSWERS_FILE, SUMMARY_FILE, CARD_FILE, REPORT_FILE)
    return [*map(str, (*check_seal(version), *check_files(version, needed))), *_check_content(version)]


def _check_content(version: EvaluationVersion) -> Iterator[str]:
    """Compute rows, figures and pages again, and yield what differs."""
    try:
        answers, spec, stored = read_answers(version.path), version.spec, version.summary
    except VersionError as error:
        yield str(error)
        return
    entry = version.manifest.files[ANSWERS_FILE]
    if (answers.num_rows, rows_digest(answers)) != (entry.rows, entry.rows_sha256):
        yield f"{ANSWERS_FILE}: its rows changed since it was published ({entry.rows} then, {answers.num_rows} now)"
    if questions_digest(answers) != version.manifest.questions.sha256:
        yield f"{ANSWERS_FILE}: its questions are not those that the manifest names"
    try:
        summary = summarise(spec, make_frame(answers))
    except (ValidationError, KeyError, ValueError) as error:
        yield f"{ANSWERS_FILE}: no figures can be computed from it ({error})"
        return
    if _round_numbers(summary.model_dump()) != _round_numbers(stored.model_dump()):
        yield f"{SUMMARY_FILE}: its figures are not those of the answers"
    if version.manifest.code == code_version():
        yield from map(str, check_pages(version, _write_pages_again(version)))


def _write_pages_again(version: EvaluationVersion) -> dict[str, str]:
    """Render card and report from the manifest as it was before they were added to it."""
    files = {file: version.manifest.files[file] for file in (ANSWERS_FILE, SUMMARY_FILE)}
    manifest = version.manifest.model_copy(update={"files": files})
    return _render_pages(manifest, version.summary, version.answers)


def _round_numbers(value: object) -> object:
    """Round all numbers in nested values: another release of numpy may differ in the last digit."""
    match value:
        case float():
            return round(value, 9)
        case dict():
            return {name: _round_numbers(part) for name, part in value.items()}
        case list() | tuple():
            return [_round_numbers(part) for part in value]
    return value
