"""Findings: the diagnostics of a version in words, as the card and `malt show` have them."""

from collections.abc import Iterator
from typing import NamedTuple

from malt.config.spec import PLAYERS
from malt.datasets.manifest import Accuracy, Diagnostics, Manifest, Share, TextCounts

NOT_DIAGNOSED = 'not known: the judge graded the leaves alone; add an objective grader, or set scope = "all"'


class Finding(NamedTuple):
    """What was looked at, and what was found."""

    subject: str
    told: str


def findings(found: Diagnostics) -> list[Finding]:
    """Tell the diagnostics, a line each."""
    return [
        Finding("leaves", accuracy(found.leaves)),
        Finding("graded by", counts(found.graded_by) or "nobody"),
        Finding("not read", f"{share(found.unread)} of leaves, and so wrong; {share(found.disputed)} disputed"),
        *(diagnosis(found) if found.graders else [Finding("generations", NOT_DIAGNOSED)]),
        Finding("questions", questions(found)),
        *texts(found),
    ]


def diagnosis(found: Diagnostics) -> list[Finding]:
    """Tell how generations and refinements compare."""
    graders = ", ".join(found.graders)
    return [
        Finding("generations", f"{accuracy(found.generator)}, by {graders}"),
        Finding("refinements", f"{accuracy(found.refiner)}, by {graders}"),
        Finding("flips", flips(found)),
        Finding("unchanged", f"{share(found.unchanged)} of refinements with an answer repeat their generation's"),
        Finding("verdicts", verdicts(found)),
    ]


def questions(found: Diagnostics) -> str:
    """Tell how many questions can give pairs."""
    mix = found.questions
    told = f"{share(mix.all_right)} all right, {share(mix.all_wrong)} all wrong, {share(mix.mixed)} mixed"
    return f"{told}; only mixed ones give pairs"


def flips(found: Diagnostics) -> str:
    """Tell the flip table and what it adds up to."""
    flipped = found.flips
    table = (
        f"wrong to right {share(flipped.wrong_to_right)}, right to right {share(flipped.right_to_right)}, "
        f"wrong to wrong {share(flipped.wrong_to_wrong)}, right to wrong {share(flipped.right_to_wrong)}"
    )
    return table if flipped.lift_points is None else f"{table}; lift {flipped.lift_points:+.1f} points"


def verdicts(found: Diagnostics) -> str:
    """Tell how far the critiques' verdicts are true."""
    return f"{share(found.verdicts.agree)} of those stated are true; {found.verdicts.unstated:,} critiques state none"


def texts(found: Diagnostics) -> Iterator[Finding]:
    """Tell what each role's texts are like, by model."""
    for role in PLAYERS:
        for model, texts in found.texts[role].items():
            yield Finding(role, f"{model or 'a model without a name'}: {texts.nodes:,} texts, {flaws(texts)}")


def flaws(texts: TextCounts) -> str:
    """Tell the shares of texts that are not as they should be."""
    named = ("truncated", texts.truncated), ("empty", texts.empty), ("refused", texts.refused)
    told = [f"{share(portion)} {name}" for name, portion in named]
    return ", ".join(told if texts.unanswered is None else [*told, f"{share(texts.unanswered)} unanswered"])


def accuracy(found: Accuracy) -> str:
    """Tell how many answers are right."""
    known = f"{found.right:,} of {found.right + found.wrong:,} right"
    percent = "" if found.percent is None else f" ({found.percent:.1f} %)"
    return known + percent + (f", {found.unknown:,} unknown" if found.unknown else "")


def share(portion: Share) -> str:
    """Write a share; of nothing there is none."""
    return "n/a" if portion.percent is None else f"{portion.percent:.1f} %"


def counts(numbers: dict[str, int]) -> str:
    """List what is not zero."""
    return ", ".join(f"{count:,} {name}" for name, count in numbers.items() if count)


class Losses(NamedTuple):
    """What became of the candidates for one file."""

    file: str
    candidates: int
    kept: int
    dropped: str
    """How many each gate left out."""


def losses(manifest: Manifest) -> list[Losses]:
    """Tell what the gates left out, file by file."""
    return [
        Losses(f"{kind}/{role}", rows.candidates, rows.kept, counts(rows.dropped))
        for role, kinds in manifest.selection.items()
        for kind, rows in kinds.items()
    ]
