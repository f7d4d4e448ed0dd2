"""Verifying an evaluation: every digest, and every figure worked out again from its answers."""

from collections.abc import Iterator

from pydantic import ValidationError

from malt.canonical_json import file_sha256
from malt.datasets.manifest import MANIFEST_FILE, content_digest, seal_holds
from malt.datasets.stats.counts import code_version
from malt.errors import VersionError
from malt.evaluation.card import CARD_FILE, render_card
from malt.evaluation.report import REPORT_FILE, render_report
from malt.evaluation.summarise import summarise
from malt.evaluation.table import ANSWERS_FILE, make_frame, questions_digest, read_answers, rows_digest
from malt.evaluation.version import SUMMARY_FILE, EvaluationVersion


def verify(version: EvaluationVersion) -> list[str]:
    """Return what does not hold, a sentence each, naming the file; nothing where all is as it was published."""
    return [*check_manifest(version), *check_bytes(version), *check_content(version)]


def check_manifest(version: EvaluationVersion) -> Iterator[str]:
    """Check what the manifest says of itself."""
    manifest = version.manifest
    if not seal_holds(version.path):
        yield f"{MANIFEST_FILE}: was edited; it no longer has the digest it was sealed with"
    if content_digest(manifest.files) != manifest.content_sha256:
        yield f"{MANIFEST_FILE}: content_sha256 is not the digest of the answers"
    if version.path.parent.name == manifest.name and version.path.name != f"v{manifest.version}":
        yield f"{MANIFEST_FILE}: says version {manifest.version}, but stands in {version.path.name}"


def check_bytes(version: EvaluationVersion) -> Iterator[str]:
    """Check that all files, and no others, are there as they were published."""
    known = version.manifest.files
    present = {path.relative_to(version.path).as_posix() for path in version.path.rglob("*")}
    for file in sorted(present - known.keys() - {MANIFEST_FILE}):
        yield f"{file}: is not in the manifest"
    for file in sorted({ANSWERS_FILE, SUMMARY_FILE, CARD_FILE, REPORT_FILE} | known.keys()):
        if file not in present or file not in known:
            yield f"{file}: is missing"
        elif file_sha256(version.path / file) != known[file].sha256:
            yield f"{file}: its bytes changed since it was published"


def check_content(version: EvaluationVersion) -> Iterator[str]:
    """Work out rows, figures and pages again."""
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
        yield f"{ANSWERS_FILE}: no figures can be worked out of it ({error})"
        return
    if round_numbers(summary.model_dump()) != round_numbers(stored.model_dump()):
        yield f"{SUMMARY_FILE}: its figures are not those of the answers"
    if version.manifest.code == code_version():
        yield from check_pages(version)


def check_pages(version: EvaluationVersion) -> Iterator[str]:
    """Draw card and report again, with the code that drew them."""
    named = version.manifest.model_copy(update={"files": list_published(version)})
    pages = {
        CARD_FILE: render_card(named, version.summary),
        REPORT_FILE: render_report(named, version.summary, version.answers),
    }
    for file, text in pages.items():
        path = version.path / file
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            yield f"{file}: does not say what answers and summary say"


def list_published(version: EvaluationVersion) -> dict[str, object]:
    """Return the files that were there when the pages were written."""
    return {file: version.manifest.files[file] for file in (ANSWERS_FILE, SUMMARY_FILE)}


def round_numbers(value: object) -> object:
    """Round all numbers in nested values: another release of numpy may differ in the last digit."""
    match value:
        case float():
            return round(value, 9)
        case dict():
            return {name: round_numbers(part) for name, part in value.items()}
        case list() | tuple():
            return [round_numbers(part) for part in value]
    return value
