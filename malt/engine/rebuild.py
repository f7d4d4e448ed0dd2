"""Rebuild of a version from its manifest's config and the samples in the store, without model calls.

It needs the questions (the version's own, if undamaged), the unchanged prompt set, and every sample of a complete
tree. A question that was incomplete stays incomplete, even if the store has more samples by now.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from malt.config.roles import Role
from malt.config.settings import Settings
from malt.datasets.check.verify import verify
from malt.datasets.manifest import Code, Manifest, seal_holds
from malt.datasets.pages.sample import group_failures
from malt.datasets.publish.shard import stored_shards
from malt.datasets.publish.writer import Provenance, VersionWriter
from malt.datasets.rows.examples import question_row
from malt.datasets.rows.files import RowsDigest, as_batch
from malt.datasets.rows.tables import QUESTION_COLUMNS, QUESTIONS, QUESTIONS_FILE
from malt.datasets.version.dataset_version import DatasetVersion
from malt.datasets.version.folders import refuse_in_versions
from malt.datasets.version.reading import reading, screen_again
from malt.engine.job import Job
from malt.errors import PromptError, QuestionError, VersionError
from malt.grading.references import check_references
from malt.grading.user_code import require_trust
from malt.prompts import PromptSet, load_prompts
from malt.questions.question import Question, read_questions
from malt.questions.screening import screen
from malt.trees.credit import value_tree
from malt.trees.replay import Assessed
from malt.trees.tree import FailedBranch, Tree

_SHOWN = 5
"""Missing branches that are listed; the rest are counted."""


class Sources(NamedTuple):
    """Present locations of a version's inputs; None: as in its config."""

    questions: str | None = None
    prompts: str | None = None


class Rebuilt(NamedTuple):
    """Result of a rebuild."""

    version: DatasetVersion
    path: Path | None = None
    """Folder that holds the version as published; None if it cannot be rebuilt."""
    written: bool = False
    """Whether the rebuild wrote it; an undamaged version is left as it is."""
    differences: tuple[str, ...] = ()
    """Reasons why it cannot be rebuilt, a sentence each."""


def rebuild(
    version: DatasetVersion,
    settings: Settings,
    out: Path | None = None,
    sources: Sources | None = None,
    *,
    trust_code: bool = False,
) -> Rebuilt:
    """Rebuild a version from the store: into the folder `out`, else over the version's own folder if that is damaged.

    Writes nothing if the content would differ. Raises `VersionError` if `out` is taken, and `InputError` if questions,
    prompts or graders cannot be used, or if the version names a grader's code and that is not trusted.
    """
    if version.spec.evaluator.function is not None:
        require_trust(version.reference, version.spec.evaluator.function, trusted=trust_code)
    if out is not None and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise VersionError(f"{out} exists already; name a new or an empty folder")
    if out is not None:
        refuse_in_versions(out.resolve())
    job = _read_job_again(version, settings, sources or Sources())
    changed = [*_changed_prompts(version, job.prompts), *_changed_questions(version, job)]
    if changed:
        return Rebuilt(version, differences=tuple(changed))
    check_references(job.questions, version.spec.evaluator)
    return _build_again(version, job, out)


def _read_job_again(version: DatasetVersion, settings: Settings, sources: Sources) -> Job:
    """Read the job from present inputs: the version's own questions, unless they are damaged or a file is given."""
    spec = version.spec
    if spec.dataset.tokenizer is not None:
        into = f"put it into {settings.datasets_dir} if that is to be loaded"
        version.refuse_foreign(settings.datasets_dir, f"the tokenizer {spec.dataset.tokenizer!r}", into)
    try:
        prompts = load_prompts(sources.prompts or spec.prompts)
    except PromptError as error:
        raise PromptError(f"{error}; --prompts says where the prompts of {version.reference} are now") from error
    if sources.questions is None and version.is_whole(QUESTIONS_FILE):
        with reading(version.path, str(version.path / QUESTIONS_FILE)):
            return Job(spec, prompts, *screen_again(version), settings)
    if not version.is_within(settings.datasets_dir) and (sources.questions is None or spec.dataset.decontaminate):
        raise VersionError(
            f"{version.path} is from elsewhere, and the files that its config names are not read. "
            f"Use a copy with an undamaged {QUESTIONS_FILE}, or put it into {settings.datasets_dir}"
        )
    declared = spec.questions.model_copy(update={"source": sources.questions or spec.questions.source})
    try:
        questions = read_questions(declared)
    except QuestionError as error:
        damaged = f"{version.reference} has no whole {QUESTIONS_FILE}, and " if sources.questions is None else ""
        raise QuestionError(f"{damaged}{error}; --questions says where the file is now") from error
    return Job(spec, prompts, questions, screen(questions, spec.dataset), settings)


def _changed_prompts(version: DatasetVersion, prompts: PromptSet) -> Iterator[str]:
    then, now = version.manifest.prompts, prompts.digests
    changed = [path for path in sorted(then.keys() | now.keys()) if then.get(path) != now.get(path)]
    if changed:
        yield (
            f"prompts: {', '.join(changed)} in {prompts.folder} changed since; give the set as it was with --prompts "
            f"(commit {version.manifest.code.commit or 'not known'})"
        )


def _changed_questions(version: DatasetVersion, job: Job) -> Iterator[str]:
    """Yield how the questions, or the test sets that they were compared with, differ from the published version's."""
    then = version.manifest
    if digest_questions(job.questions) != then.questions.sha256:
        yield (
            f"questions: {then.counts.questions} were asked, and the file ({then.questions.source} then) has "
            f"{len(job.questions)} now, not all the same; give the file as it was with --questions"
        )
    for test_set in job.screening.test_sets:
        if test_set not in then.screening.test_sets:
            yield f"dataset.decontaminate: {test_set.source} changed since; put it back as it was"


def digest_questions(questions: Sequence[Question]) -> str:
    """Return the digest that a manifest records for these questions."""
    asked = RowsDigest(QUESTIONS, QUESTION_COLUMNS)
    asked.update(as_batch([question_row(Tree(question, {}), "train", None) for question in questions], QUESTIONS))
    return asked.hexdigest()


def _build_again(version: DatasetVersion, job: Job, out: Path | None) -> Rebuilt:
    """Write the version to a staging folder, and move it to its place if its content matches the manifest."""
    then = version.manifest
    place = version.path if out is None else out.resolve()
    provenance = Provenance(job.prompts.digests, job.screening, then.created_at)
    source = job.source._replace(moment=then.created_at, patience_s=0.0)
    failed = _failed_trees(then, job)
    with VersionWriter(version.spec, provenance, place.parent) as writer:
        for shard in stored_shards(job.questions, source, job.screening, writer.stats, failed):
            writer.add(shard)
        missing = [branch for branch in writer.stats.trees.failures if branch.question_id not in failed]
        now = writer.manifest(writer.finish(), then.version, then.parent)
        differences = _describe_missing(missing) or _describe_row_changes(version, now)
        if differences:
            return Rebuilt(version, differences=tuple(differences))
        if out is None and not verify(version):
            return Rebuilt(version, place)
        writer.name(now)
        writer.put(place)
    return Rebuilt(version, place, written=True)


def _failed_trees(then: Manifest, job: Job) -> dict[str, Assessed]:
    """Return the incomplete trees of the version, empty but for the failures that its manifest records."""
    failures = group_failures(then)
    known: dict[str, Assessed] = {}
    for question in job.questions:
        if question.question_id in failures:
            own = (
                FailedBranch(each.question_id, each.address, Role(each.role), each.reason)
                for each in failures[question.question_id]
            )
            known[question.question_id] = Assessed(value_tree(Tree(question, {}, tuple(own)), {}, job.spec.credit), ())
    return known


def _describe_missing(missing: Sequence[FailedBranch]) -> list[str]:
    named = [
        f"store: lacks the {branch.role}'s answer to question {branch.question_id!r}"
        + (f" at node {branch.address}" if branch.address else "")
        for branch in missing[:_SHOWN]
    ]
    return [*named, *([f"store: … and lacks {len(missing) - _SHOWN:,} more"] if len(missing) > _SHOWN else [])]


def _describe_row_changes(version: DatasetVersion, now: Manifest) -> list[str]:
    """Describe the files that would have other rows, and possible reasons."""
    then = version.manifest
    if now.content_sha256 == then.content_sha256:
        return []
    changes = [
        f"{file}: other rows ({old.rows if old else 'no such file'} then, {new.rows if new else 'no such file'} now)"
        for file in sorted(then.files.keys() | now.files.keys())
        for old, new in [(then.files.get(file), now.files.get(file))]
        if (old and old.rows_sha256) != (new and new.rows_sha256)
    ]
    if not seal_holds(version.path):
        changes.append("manifest.json: was edited; restore it from a copy of the version")
    if then.code != now.code:
        changes.append(f"code: {release(then.code)} made it, this is {release(now.code)}")
    return changes


def release(code: Code) -> str:
    return f"malt {code.version}" + (f" ({code.commit})" if code.commit else "")
