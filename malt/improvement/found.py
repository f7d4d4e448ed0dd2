"""Search for the versions on disk that match a round's config: the only state from which an improvement resumes."""

from collections.abc import Iterable
from contextlib import suppress

from pydantic import JsonValue

from malt.canonical_json import digest
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.datasets.manifest import published_config
from malt.datasets.version.dataset_version import DatasetVersion, list_names, list_versions
from malt.engine.job import Job
from malt.engine.rebuild import digest_questions
from malt.errors import VersionError
from malt.evaluation.job import EvaluationJob
from malt.evaluation.publish import describe_cast
from malt.evaluation.version import EvaluationVersion, list_evaluations
from malt.models.version import list_models
from malt.questions.question import Question

_CHANGES_NO_TREE = {"train", "evaluate", "improve", "limits", "run"}
_CHANGES_NO_ANSWER = {"train", "improve", "limits", "run"}
_CHANGES_NOTHING = {"timeout_s", "api_base", "api_key_env", "api_key_block", "fallbacks", "source", "prompts"}
"""Keys that are not compared, at any depth; files that they name are compared by content."""


def find_dataset(job: Job) -> DatasetVersion | None:
    """Return the first version of a job's trees that is complete or was trained on; None where there is none.

    An incomplete version that a stopped run left behind is skipped.
    """
    folder = job.settings.datasets_dir
    listed = list_versions(folder, job.spec.name).versions if job.spec.name in list_names(folder) else []
    alike = [version for version in listed if _is_of_job(version, job)]
    trained_on = {
        entry.content_sha256
        for model in list_models(job.settings.models_dir)[0]
        for entry in (*model.manifest.earlier, model.manifest.dataset)
    }
    return next((each for each in alike if _is_final(each, trained_on)), None)


def _is_final(version: DatasetVersion, trained_on: set[str]) -> bool:
    """Whether a version is final: without failures, or trained on already."""
    return not version.manifest.failures or version.manifest.content_sha256 in trained_on


def _is_of_job(version: DatasetVersion, job: Job) -> bool:
    """Whether a version was made from a job's config, prompts and questions."""
    manifest = version.manifest
    same = manifest.prompts == job.prompts.digests and manifest.questions.sha256 == digest_questions(job.questions)
    return same and _is_same_config(version, job.spec, _CHANGES_NO_TREE)


def find_evaluation(job: EvaluationJob) -> EvaluationVersion | None:
    """Return the first version that makes a job's comparison; None where there is none."""
    name = job.spec.name
    listed = list_evaluations(name).versions if name in list_names(Settings().evaluations_dir) else []
    if job.spec.run.on_incomplete == "fail":
        listed = [version for version in listed if not version.manifest.failures]
    return next((version for version in listed if _is_of_evaluation(version, job)), None)


def _is_of_evaluation(version: EvaluationVersion, job: EvaluationJob) -> bool:
    """Whether a version compares the systems of a job, by their weights, on its questions."""
    cast = {each.system: describe_cast(each) for each in job.lineups if each.kind == "chain"}
    same = version.manifest.models == cast and version.manifest.prompts == job.prompts.digests
    return same and _is_same_config(version, job.spec, _CHANGES_NO_ANSWER) and _asks_same(version, job.questions)


def _asks_same(version: EvaluationVersion, questions: Iterable[Question]) -> bool:
    rows = version.answers
    asked = set(zip(rows["question_id"], rows["question"], rows["ground_truth"], strict=True))
    return asked == {(each.question_id, each.question, each.ground_truth) for each in questions}


def _is_same_config(version: DatasetVersion | EvaluationVersion, spec: RunSpec, left_out: set[str]) -> bool:
    """Whether a version has the same config, apart from the keys left out."""
    with suppress(VersionError):  # a config that this release cannot read
        return _config_digest(version.spec, left_out) == _config_digest(spec, left_out)
    return False


def _config_digest(spec: RunSpec, left_out: set[str]) -> str:
    """Return the digest of a config without the keys left out and those that change no answer."""
    return digest(_strip(published_config(spec), left_out | _CHANGES_NOTHING))


def _strip(value: JsonValue, left_out: set[str]) -> JsonValue:
    """Remove keys at any depth."""
    if isinstance(value, dict):
        return {key: _strip(each, left_out) for key, each in value.items() if key not in left_out}
    return [_strip(each, left_out) for each in value] if isinstance(value, list) else value
