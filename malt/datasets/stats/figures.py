"""The figures of a report, each a table of rows, from what a version's manifest counts; and how numbers are written."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from malt.config.roles import PLAYERS
from malt.datasets.manifest import Accuracy, Manifest
from malt.datasets.stats.diagnostics import percent

if TYPE_CHECKING:
    import pandas as pd


class RoleFigure(NamedTuple):
    """Who played a role, and what came of it."""

    role: str
    model: str
    samples: int
    temperature: float | None
    """None: the provider's default."""
    max_tokens: int | None
    nodes: int
    right: int
    wrong: int
    no_label: int


class Measure(NamedTuple):
    """How often something was right."""

    measure: str
    of: str
    """What is counted."""
    right: int
    known: int
    unknown: int
    percent: float | None
    low: float | None = None
    """95 % interval over questions."""
    high: float | None = None


class Flip(NamedTuple):
    """Leaves by what was right before critique and refinement, and after."""

    before: str
    after: str
    leaves: int
    percent: float | None


class Mix(NamedTuple):
    """Questions by what became of them."""

    kind: str
    questions: int
    percent: float | None


class Yield(NamedTuple):
    """What one role gives one kind of training row."""

    role: str
    kind: str
    candidates: int
    kept: int


class Loss(NamedTuple):
    """Candidates that one gate left out."""

    role: str
    kind: str
    gate: str
    lost: int


class ValueBin(NamedTuple):
    """Nodes of one role whose value is in one tenth."""

    role: str
    low: float
    high: float
    right: int
    wrong: int


class UsageFigure(NamedTuple):
    """What a role's completions took."""

    role: str
    completions: int
    prompt_tokens: int | None
    """None: some completion does not say."""
    completion_tokens: int | None
    cost_usd: float | None
    known: int
    """Completions whose cost is known."""
    known_usd: float
    """What those cost."""


def list_roles(manifest: Manifest) -> Iterator[RoleFigure]:
    """Yield who was asked, in the order they speak."""
    for role in PLAYERS:
        spec, labels, nodes = manifest.spec.roles[role], manifest.counts.labels[role], manifest.counts.nodes[role]
        labelled = labels.right, labels.wrong, labels.none
        yield RoleFigure(role.value, spec.model, spec.samples, spec.temperature, spec.max_tokens, nodes, *labelled)


def measure_accuracy(manifest: Manifest) -> Iterator[Measure]:
    """Yield how often each role was correct, and what a vote (maj@k) or any of k answers (pass@k) makes of it."""
    found, verdicts = manifest.diagnostics, manifest.diagnostics.verdicts
    branching = manifest.spec.roles.branching
    leaves = f"{prod(branching)}" if manifest.growth.mode == "full" else "k"
    if found.graders:
        by = f"answers, by {', '.join(found.graders)}"
        agree = verdicts.correct_on_right + verdicts.wrong_on_wrong
        stated = agree + verdicts.correct_on_wrong + verdicts.wrong_on_right
        yield _measure("Generations", by, found.generator)
        yield _measure(f"maj@{branching[0]} of generations", "questions", found.generations_vote)
        yield Measure("Critiques", "stated verdicts", agree, stated, verdicts.unstated, verdicts.agree.percent)
        yield _measure("Refinements", by, found.refiner)
    yield _measure("Graded leaves", "answers, as graded for credit", found.leaves)
    yield _measure(f"maj@{leaves} of leaves", "questions", found.leaves_vote)
    yield _measure(f"pass@{leaves} of leaves", "questions", found.any_leaf)


def _measure(name: str, of: str, found: Accuracy) -> Measure:
    known = found.right + found.wrong
    return Measure(name, of, found.right, known, found.unknown, found.percent, found.low, found.high)


def list_flips(manifest: Manifest) -> list[Flip]:
    """List what became of answers, right to right first and wrong to wrong last; empty where nobody diagnosed them."""
    found = manifest.diagnostics.flips
    table = {
        ("right", "right"): found.right_to_right,
        ("right", "wrong"): found.right_to_wrong,
        ("wrong", "right"): found.wrong_to_right,
        ("wrong", "wrong"): found.wrong_to_wrong,
    }
    known = any(portion.count for portion in table.values())
    return [Flip(*sides, portion.count, portion.percent) for sides, portion in table.items()] if known else []


def list_mix(manifest: Manifest) -> list[Mix]:
    """List what became of all questions, failed ones too."""
    found, counts = manifest.diagnostics.questions, manifest.counts
    kinds = {
        "all right": found.all_right.count,
        "mixed": found.mixed.count,
        "all wrong": found.all_wrong.count,
        "unknown": found.unknown.count,
        "failed": counts.questions - counts.complete,
    }
    return [Mix(kind, number, percent(number, counts.questions)) for kind, number in kinds.items()]


def list_yields(manifest: Manifest) -> Iterator[Yield]:
    """Yield how many candidates became rows, by role and kind of row."""
    for role, kinds in manifest.selection.items():
        for kind, rows in kinds.items():
            yield Yield(role, kind, rows.candidates, rows.kept)


def list_losses(manifest: Manifest) -> Iterator[Loss]:
    """Yield what every gate left out, by role and kind of row, in the order of the gates."""
    for role, kinds in manifest.selection.items():
        for kind, rows in kinds.items():
            yield from (Loss(role, kind, gate, lost) for gate, lost in rows.dropped.items())


def list_values(manifest: Manifest) -> Iterator[ValueBin]:
    """Yield how the values of each role's nodes are spread."""
    for role, found in manifest.diagnostics.values.items():
        bins = len(found.right)
        for place, (right, wrong) in enumerate(zip(found.right, found.wrong, strict=True)):
            yield ValueBin(role, place / bins, (place + 1) / bins, right, wrong)


def list_usage(manifest: Manifest) -> Iterator[UsageFigure]:
    """Yield what each role's completions took, the judge's too where that is known."""
    for role, used in manifest.tokens.items():
        cost, tokens = manifest.cost[role], (used.completions, used.prompt_tokens, used.completion_tokens)
        yield UsageFigure(role, *tokens, cost.cost_usd, cost.known, cost.known_usd)


_FIGURES: Mapping[str, tuple[type[NamedTuple], Callable[[Manifest], Iterable[NamedTuple]]]] = {
    "asked": (RoleFigure, list_roles),
    "accuracy": (Measure, measure_accuracy),
    "flips": (Flip, list_flips),
    "mix": (Mix, list_mix),
    "yields": (Yield, list_yields),
    "losses": (Loss, list_losses),
    "values": (ValueBin, list_values),
    "used": (UsageFigure, list_usage),
}


def tabulate_figures(manifest: Manifest) -> "dict[str, pd.DataFrame]":
    import pandas as pd

    return {
        name: pd.DataFrame(list(rows(manifest)), columns=list(row._fields)) for name, (row, rows) in _FIGURES.items()
    }


def format_count(number: int | None) -> str:
    """Write a whole number; one that is not known is never zero."""
    return "unknown" if number is None else f"{number:,}"


def format_share(percent: float | None) -> str:
    """Write a share; of nothing there is none."""
    return "n/a" if percent is None else f"{percent:.1f} %"


def format_dollars(usd: float | None) -> str:
    """Write a cost; one that is not known is never zero."""
    return "unknown" if usd is None else f"${usd:,.4f}" if usd < 1 else f"${usd:,.2f}"
