"""Comparison of two evaluations: changed inputs, changed accuracies, and questions with a better or worse score."""

from pydantic import JsonValue

from malt.config.base import Recorded
from malt.datasets.check.compare import Change, compare_values, flatten_table
from malt.evaluation.summary import MEASURES
from malt.evaluation.table import make_sheets
from malt.evaluation.version import EvaluationVersion


class Turned(Recorded):
    """Questions on which a system's score, by the deciding measure, rose or fell."""

    better: tuple[str, ...]
    worse: tuple[str, ...]


class EvaluationDiff(Recorded):
    """Differences between two evaluations."""

    old: str
    new: str
    same_content: bool
    inputs: dict[str, Change]
    """Inputs that differ, by dotted path of the config, `prompts.FILE` and `questions`."""
    accuracies: dict[str, dict[str, Change]]
    """Accuracies that differ, by system, then by measure."""
    turned: dict[str, Turned]
    """Questions of both evaluations whose score changed, by system."""


def compare(old: EvaluationVersion, new: EvaluationVersion) -> EvaluationDiff:
    """Compare two evaluations. Raises `VersionError` where a file cannot be read."""
    return EvaluationDiff(
        old=old.reference,
        new=new.reference,
        same_content=old.manifest.content_sha256 == new.manifest.content_sha256,
        inputs=compare_values(_list_inputs(old), _list_inputs(new)),
        accuracies={name: moved for name, moved in _compare_accuracies(old, new).items() if moved},
        turned=_list_turned(old, new),
    )


def _list_inputs(version: EvaluationVersion) -> dict[str, JsonValue]:
    """Return a version's inputs, by dotted path."""
    manifest = version.manifest
    prompts = {f"prompts.{file}": digest for file, digest in manifest.prompts.items()}
    return {**dict(flatten_table(manifest.config)), **prompts, "questions": manifest.questions.sha256}


def _compare_accuracies(old: EvaluationVersion, new: EvaluationVersion) -> dict[str, dict[str, Change]]:
    names = dict.fromkeys((*old.summary.systems, *new.summary.systems))
    return {name: compare_values(_list_accuracies(old, name), _list_accuracies(new, name)) for name in names}


def _list_accuracies(version: EvaluationVersion, name: str) -> dict[str, JsonValue]:
    """Return a system's accuracies by measure; nothing where there is no such system."""
    system = version.summary.systems.get(name)
    return {} if system is None else {measure: getattr(system, measure).accuracy for measure in MEASURES}


def _list_turned(old: EvaluationVersion, new: EvaluationVersion) -> dict[str, Turned]:
    """Return, for each system in both versions, the questions that are right more often, or less often, than before."""
    before, after = _score_questions(old), _score_questions(new)
    found = {}
    for name in before.keys() & after.keys():
        gains = {
            question: after[name][question] - score
            for question, score in before[name].items()
            if question in after[name]
        }
        better = tuple(question for question, gain in gains.items() if gain > 0)
        worse = tuple(question for question, gain in gains.items() if gain < 0)
        found[name] = Turned(better=better, worse=worse)
    return {name: found[name] for name in old.summary.systems if name in found}


def _score_questions(version: EvaluationVersion) -> dict[str, dict[str, float]]:
    sheets = make_sheets(version.spec, version.answers, "chain")
    scores = {name: map(float, sheet.scores(version.summary.measure)) for name, sheet in sheets.items()}
    return {name: dict(zip(sheet.questions, scores[name], strict=True)) for name, sheet in sheets.items()}
