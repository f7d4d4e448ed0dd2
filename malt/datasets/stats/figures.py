"""Figures of a version, as tables made from its manifest and in words; and the format of their numbers."""

from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from malt.config.roles import PLAYERS
from malt.datasets.manifest import Manifest
from malt.datasets.measures import Accuracy, Diagnostics, TextCounts, VerdictTable
from malt.datasets.stats.diagnostics import percent
from malt.grading.grades import Outcome

if TYPE_CHECKING:
    import pandas as pd


class Measure(NamedTuple):
    """Number of right answers or verdicts of one kind."""

    measure: str
    of: str
    """Unit that is counted."""
    right: int
    known: int
    unknown: int
    percent: float | None
    low: float | None = None
    """Lower end of the 95 % interval over questions."""
    high: float | None = None


class Flip(NamedTuple):
    """Leaves by whether the answer was right before critique and refinement, and after."""

    before: str
    after: str
    leaves: int
    percent: float | None


class Mix(NamedTuple):
    """Number of questions with one mix of labels, or that failed."""

    kind: str
    questions: int
    percent: float | None


def measure_accuracy(manifest: Manifest) -> Iterator[Measure]:
    """Yield the accuracy of each role, and of a vote (maj@k) or any of k answers (pass@k)."""
    found, branching = manifest.diagnostics, manifest.spec.roles.branching
    leaves = f"{prod(branching)}" if manifest.growth.mode == "full" else "k"
    if found.graders:
        by = f"answers, by {', '.join(found.graders)}"
        yield _measure("Generations", by, found.generator)
        yield _measure(f"maj@{branching[0]} of generations", "questions", found.generations_vote)
        yield _measure_verdicts(found.verdicts)
        yield _measure("Refinements", by, found.refiner)
    yield _measure("Graded leaves", "answers, as graded for credit", found.leaves)
    yield _measure(f"maj@{leaves} of leaves", "questions", found.leaves_vote)
    yield _measure(f"pass@{leaves} of leaves", "questions", found.any_leaf)


def _measure_verdicts(verdicts: VerdictTable) -> Measure:
    agree = verdicts.correct_on_right + verdicts.wrong_on_wrong
    stated = agree + verdicts.correct_on_wrong + verdicts.wrong_on_right
    return Measure("Critiques", "stated verdicts", agree, stated, verdicts.unstated, verdicts.agree.percent)


def _measure(name: str, of: str, found: Accuracy) -> Measure:
    known = found.right + found.wrong
    return Measure(name, of, found.right, known, found.unknown, found.percent, found.low, found.high)


def list_flips(manifest: Manifest) -> list[Flip]:
    """List the flips, right to right first and wrong to wrong last; empty where no answers were diagnosed."""
    found = manifest.diagnostics.flips
    table = {
        ("right", "right"): found.right_to_right,
        ("right", "wrong"): found.right_to_wrong,
        ("wrong", "right"): found.wrong_to_right,
        ("wrong", "wrong"): found.wrong_to_wrong,
    }
    known = any(share.count for share in table.values())
    return [Flip(*sides, share.count, share.percent) for sides, share in table.items()] if known else []


def list_mix(manifest: Manifest) -> list[Mix]:
    """List the number of questions with each mix of labels, and of failed ones."""
    found, counts = manifest.diagnostics.questions, manifest.counts
    kinds = {
        "all right": found.all_right.count,
        "mixed": found.mixed.count,
        "all wrong": found.all_wrong.count,
        "unknown": found.unknown.count,
        "failed": counts.questions - counts.complete,
    }
    return [Mix(kind, number, percent(number, counts.questions)) for kind, number in kinds.items()]


def tabulate_figures(manifest: Manifest) -> "dict[str, pd.DataFrame]":
    import pandas as pd

    selected = [(role, kind, rows) for role, kinds in manifest.selection.items() for kind, rows in kinds.items()]
    yields = [(role, kind, rows.candidates, rows.kept) for role, kind, rows in selected]
    losses = [(role, kind, gate, lost) for role, kind, rows in selected for gate, lost in rows.dropped.items()]
    values = [
        (role, place / len(found.right), (place + 1) / len(found.right), *labelled)
        for role, found in manifest.diagnostics.values.items()
        for place, labelled in enumerate(zip(found.right, found.wrong, strict=True))
    ]
    used = [
        {"role": role, **tokens.model_dump(), **manifest.cost[role].model_dump()}
        for role, tokens in manifest.tokens.items()
    ]
    return {
        "asked": pd.DataFrame(_list_roles(manifest)),
        "accuracy": pd.DataFrame([*measure_accuracy(manifest)]),
        "flips": pd.DataFrame(list_flips(manifest), columns=[*Flip._fields]),
        "mix": pd.DataFrame(list_mix(manifest)),
        "yields": pd.DataFrame(yields, columns=["role", "kind", "candidates", "kept"]),
        "losses": pd.DataFrame(losses, columns=["role", "kind", "gate", "lost"]),
        "values": pd.DataFrame(values, columns=["role", "low", "high", "right", "wrong"]),
        "used": pd.DataFrame(used),
    }


def _list_roles(manifest: Manifest) -> list[dict[str, object]]:
    """List the settings of each role, and its nodes by label."""
    settings = ("model", "samples", "temperature", "max_tokens")
    return [
        {
            "role": role.value,
            **{name: getattr(manifest.spec.roles[role], name) for name in settings},
            "nodes": manifest.counts.nodes[role],
            "right": manifest.counts.labels[role].right,
            "wrong": manifest.counts.labels[role].wrong,
            "no_label": manifest.counts.labels[role].none,
        }
        for role in PLAYERS
    ]


def format_count(number: int | None) -> str:
    """Format a whole number; an unknown one is never shown as 0."""
    return "unknown" if number is None else f"{number:,}"


def format_share(percent: float | None) -> str:
    """Format a percentage; None stands for a share of nothing."""
    return "n/a" if percent is None else f"{percent:.1f} %"


def format_dollars(usd: float | None) -> str:
    """Format a cost; an unknown one is never shown as 0."""
    return "unknown" if usd is None else f"${usd:,.4f}" if usd < 1 else f"${usd:,.2f}"


_NOT_DIAGNOSED = 'not known: the judge graded the leaves alone; add an objective grader, or set scope = "all"'


class Finding(NamedTuple):
    """Subject of a diagnostic, and its result in words."""

    subject: str
    sentence: str


def describe_diagnostics(found: Diagnostics) -> list[Finding]:
    """Describe the diagnostics in words, a line each."""
    unread, disputed = format_share(found.unread.percent), format_share(found.disputed.percent)
    return [
        Finding("leaves", _accuracy(found.leaves)),
        Finding("graded by", _list_counts(found.graded_by) or "nobody"),
        *([Finding("unknown", describe_unknown(found.unknown))] if found.unknown else ()),
        Finding("not read", f"{unread} of leaves, and so wrong; {disputed} disputed"),
        *(_compare_answers(found) if found.graders else [Finding("generations", _NOT_DIAGNOSED)]),
        Finding("questions", _question_mix(found)),
        *_texts(found),
    ]


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
    """Candidates for one file, and those that were kept and dropped."""

    file: str
    candidates: int
    kept: int
    dropped: str
    """Number that each gate left out, as a list in words."""


def describe_losses(manifest: Manifest) -> Iterator[FileLosses]:
    for role, kinds in manifest.selection.items():
        for kind, rows in kinds.items():
            yield FileLosses(f"{kind}/{role}", rows.candidates, rows.kept, _list_counts(rows.dropped))


_NEARLY_ALL = 90
"""Percentage of a model's texts that are cut off, from which a dataset is doubtful."""
_REASONS_NAMED = 3


def find_suspicions(manifest: Manifest) -> Iterator[str]:
    """Yield reasons to doubt a dataset, a sentence each; that too few grades are known comes first."""
    if reason := why_withheld(manifest):
        yield reason
    graded, pairs = manifest.diagnostics.leaves, [kinds["dpo"] for kinds in manifest.selection.values()]
    if not graded.right + graded.wrong:
        return
    if not graded.wrong:
        yield "every graded leaf is right: no pair can be made; ask harder questions, or a stricter grader"
    elif not graded.right:
        yield "no graded leaf is right: no pair can be made; compare reference answers and grades with malt show"
    elif not sum(rows.kept for rows in pairs):
        candidates = sum(rows.candidates for rows in pairs)
        gates = f"the gates left out every candidate ({candidates:,})"
        yield f"no preference pair: {gates if candidates else 'no two siblings have different labels'}"
    yield from _suspect_texts(manifest.diagnostics)


def _suspect_texts(found: Diagnostics) -> Iterator[str]:
    if found.verdicts.unstated and found.verdicts.agree.percent is None:
        unstated = f"none of {found.verdicts.unstated:,} critiques states a verdict"
        yield f"{unstated} on a line of its own, as in: Verdict: correct"
    for role, models in found.texts.items():
        for model, texts in models.items():
            if (texts.truncated.percent or 0) >= _NEARLY_ALL:
                cut = format_share(texts.truncated.percent)
                yield f"{cut} of the {role}'s texts by {model} are cut off: raise roles.{role}.max_tokens"


def why_withheld(manifest: Manifest) -> str | None:
    """Return the reason why `latest` should not point at a version; None where there is none."""
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
