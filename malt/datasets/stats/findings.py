"""Findings: the diagnostics of a version in words, as the card and `malt show` have them, and what is suspicious."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from malt.config.roles import PLAYERS
from malt.datasets.manifest import Accuracy, Diagnostics, Manifest, TextCounts
from malt.datasets.stats.figures import format_share
from malt.grading.grades import Outcome

_NOT_DIAGNOSED = 'not known: the judge graded the leaves alone; add an objective grader, or set scope = "all"'


class Finding(NamedTuple):
    """What was looked at, and what was found."""

    subject: str
    sentence: str


def describe_diagnostics(found: Diagnostics) -> list[Finding]:
    """Put the diagnostics in words, a line each."""
    return [
        Finding("leaves", _accuracy(found.leaves)),
        Finding("graded by", _list_counts(found.graded_by) or "nobody"),
        *([Finding("unknown", describe_unknown(found.unknown))] if found.unknown else ()),
        Finding("not read", _doubts(found)),
        *(_compare_answers(found) if found.graders else [Finding("generations", _NOT_DIAGNOSED)]),
        Finding("questions", _question_mix(found)),
        *_texts(found),
    ]


def _doubts(found: Diagnostics) -> str:
    disputed = format_share(found.disputed.percent)
    return f"{format_share(found.unread.percent)} of leaves, and so wrong; {disputed} disputed"


def _compare_answers(found: Diagnostics) -> list[Finding]:
    graders, unchanged = ", ".join(found.graders), format_share(found.unchanged.percent)
    stated = f"{format_share(found.verdicts.agree.percent)} of those stated are true"
    return [
        Finding("generations", f"{_accuracy(found.generator)}, by {graders}"),
        Finding("refinements", f"{_accuracy(found.refiner)}, by {graders}"),
        Finding("flips", _flips(found)),
        Finding("unchanged", f"{unchanged} of refinements with an answer repeat their generation's"),
        Finding("verdicts", f"{stated}; {found.verdicts.unstated:,} critiques state none"),
    ]


def _question_mix(found: Diagnostics) -> str:
    mix = found.questions
    named = ("all positive", mix.all_right), ("all negative", mix.all_wrong), ("mixed", mix.mixed)
    return ", ".join(f"{format_share(share.percent)} {name}" for name, share in named) + "; only mixed ones give pairs"


def _flips(found: Diagnostics) -> str:
    flips = found.flips
    named = (
        ("incorrect to correct", flips.wrong_to_right),
        ("correct to correct", flips.right_to_right),
        ("incorrect to incorrect", flips.wrong_to_wrong),
        ("correct to incorrect", flips.right_to_wrong),
    )
    table = ", ".join(f"{name} {format_share(share.percent)}" for name, share in named)
    return table if flips.lift_points is None else f"{table}; lift {flips.lift_points:+.1f} points"


def _texts(found: Diagnostics) -> Iterator[Finding]:
    for role in PLAYERS:
        for model, texts in found.texts[role].items():
            yield Finding(role, f"{model or 'a model without a name'}: {texts.nodes:,} texts, {_flaws(texts)}")


def _flaws(texts: TextCounts) -> str:
    named = {"truncated": texts.truncated, "empty": texts.empty, "refused": texts.refused}
    known = named if texts.unanswered is None else {**named, "unanswered": texts.unanswered}
    known |= {"with stop tokens": texts.stop_tokens} if texts.stop_tokens.count else {}
    return ", ".join(f"{format_share(share.percent)} {name}" for name, share in known.items())


def _accuracy(found: Accuracy) -> str:
    known = f"{found.right:,} of {found.right + found.wrong:,} correct"
    percent = "" if found.percent is None else f" ({found.percent:.1f} %)"
    return known + percent + (f", {found.unknown:,} unknown" if found.unknown else "")


def _list_counts(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in numbers.items() if count)


class FileLosses(NamedTuple):
    """What became of the candidates for one file."""

    file: str
    candidates: int
    kept: int
    dropped: str
    """How many each gate left out."""


def describe_losses(manifest: Manifest) -> list[FileLosses]:
    return [
        FileLosses(f"{kind}/{role}", rows.candidates, rows.kept, _list_counts(rows.dropped))
        for role, kinds in manifest.selection.items()
        for kind, rows in kinds.items()
    ]


_NEARLY_ALL = 90
"""Percent."""
_REASONS_NAMED = 3


def find_suspicions(manifest: Manifest) -> Iterator[str]:
    """Say what makes a dataset doubtful, a sentence each; that too few grades are known comes first."""
    found = manifest.diagnostics
    if reason := why_withheld(manifest):
        yield reason
    graded, pairs = found.leaves, [kinds["dpo"] for kinds in manifest.selection.values()]
    if not graded.right + graded.wrong:
        return
    if not graded.wrong:
        yield "every graded leaf is right: no pair can be made; ask harder questions, or a stricter grader"
    elif not graded.right:
        yield "no graded leaf is right: no pair can be made; compare reference answers and grades with malt show"
    elif not sum(rows.kept for rows in pairs):
        yield f"no preference pair: the gates left out all of {sum(rows.candidates for rows in pairs):,}"
    yield from _suspect_texts(found)


def _suspect_texts(found: Diagnostics) -> Iterator[str]:
    if found.verdicts.unstated and found.verdicts.agree.percent is None:
        yield f"none of {found.verdicts.unstated:,} critiques states a verdict, as in: Verdict: correct"
    for role, models in found.texts.items():
        for model, texts in models.items():
            if (texts.truncated.percent or 0) >= _NEARLY_ALL:
                cut = format_share(texts.truncated.percent)
                yield f"{cut} of the {role}'s texts by {model} are cut off: raise roles.{role}.max_tokens"


def why_withheld(manifest: Manifest) -> str | None:
    """Say why `latest` should not name a version; None where nothing speaks against it."""
    outcomes, most = manifest.counts.outcomes, manifest.spec.credit.max_unknown
    leaves, unknown = sum(outcomes.values()), outcomes.get(Outcome.UNKNOWN, 0)
    if unknown <= most * leaves:
        return None
    return (
        f"the grade of {unknown:,} of {leaves:,} leaves is unknown, and credit.max_unknown = {most:g}: "
        f"{describe_unknown(manifest.diagnostics.unknown)}"
    )


def describe_unknown(reasons: Mapping[str, int]) -> str:
    named = "; ".join(f"{reason} ({count:,})" for reason, count in list(reasons.items())[:_REASONS_NAMED])
    return f"{named}; …" if len(reasons) > _REASONS_NAMED else named
