"""The figures of a report, each a table of rows, from what a version's manifest counts. No row of the data is read."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from malt.config.spec import PLAYERS, Role
from malt.datasets.manifest import Accuracy, Manifest

if TYPE_CHECKING:
    import pandas as pd


class Asked(NamedTuple):
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
    low: float | None
    """95 % interval over questions."""
    high: float | None


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


class Used(NamedTuple):
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


def asked(manifest: Manifest) -> list[Asked]:
    """Tell who was asked, in the order they speak."""
    return [asked_role(manifest, role) for role in PLAYERS]


def asked_role(manifest: Manifest, role: Role) -> Asked:
    """Tell who played one role."""
    spec, labels = manifest.spec.roles[role], manifest.counts.labels[role]
    nodes = manifest.counts.nodes[role]
    labelled = labels.right, labels.wrong, labels.none
    return Asked(role.value, spec.model, spec.samples, spec.temperature, spec.max_tokens, nodes, *labelled)


def accuracy(manifest: Manifest) -> list[Measure]:
    """Tell how often each role was right, and what a vote makes of it."""
    found = manifest.diagnostics
    by = f"answers, by {', '.join(found.graders)}"
    leaves = [
        measure("Graded leaves", "answers, as graded for credit", found.leaves),
        measure("Majority of leaves", "questions", found.leaves_vote),
        measure("Any leaf", "questions", found.any_leaf),
    ]
    if not found.graders:
        return leaves
    agree = found.verdicts.correct_on_right + found.verdicts.wrong_on_wrong
    stated = agree + found.verdicts.correct_on_wrong + found.verdicts.wrong_on_right
    return [
        measure("Generations", by, found.generator),
        measure("Majority of generations", "questions", found.generations_vote),
        Measure(
            "Critiques",
            "stated verdicts",
            agree,
            stated,
            found.verdicts.unstated,
            found.verdicts.agree.percent,
            None,
            None,
        ),
        measure("Refinements", by, found.refiner),
        *leaves,
    ]


def measure(name: str, of: str, found: Accuracy) -> Measure:
    """Tell one accuracy."""
    known = found.right + found.wrong
    return Measure(name, of, found.right, known, found.unknown, found.percent, found.low, found.high)


def flips(manifest: Manifest) -> list[Flip]:
    """Tell what became of answers; nothing where nobody diagnosed them."""
    found = manifest.diagnostics
    table = {
        ("right", "right"): found.flips.right_to_right,
        ("right", "wrong"): found.flips.right_to_wrong,
        ("wrong", "right"): found.flips.wrong_to_right,
        ("wrong", "wrong"): found.flips.wrong_to_wrong,
    }
    known = any(portion.count for portion in table.values())
    return [Flip(*sides, portion.count, portion.percent) for sides, portion in table.items()] if known else []


def mix(manifest: Manifest) -> list[Mix]:
    """Tell what became of all questions, failed ones too."""
    found, counts = manifest.diagnostics.questions, manifest.counts
    kinds = {
        "all right": found.all_right.count,
        "mixed": found.mixed.count,
        "all wrong": found.all_wrong.count,
        "unknown": found.unknown.count,
        "failed": counts.questions - counts.complete,
    }
    return [Mix(kind, count, percent(count, counts.questions)) for kind, count in kinds.items()]


def yields(manifest: Manifest) -> list[Yield]:
    """Tell how many candidates became rows, by role and kind of row."""
    return [
        Yield(role, kind, rows.candidates, rows.kept)
        for role, kinds in manifest.selection.items()
        for kind, rows in kinds.items()
    ]


def losses(manifest: Manifest) -> list[Loss]:
    """Tell what every gate left out, by role and kind of row, in the order of the gates."""
    return [
        Loss(role, kind, gate, lost)
        for role, kinds in manifest.selection.items()
        for kind, rows in kinds.items()
        for gate, lost in rows.dropped.items()
    ]


def values(manifest: Manifest) -> list[ValueBin]:
    """Tell how the values of each role's nodes are spread."""
    return [
        ValueBin(role, place / len(found.right), (place + 1) / len(found.right), right, wrong)
        for role, found in manifest.diagnostics.values.items()
        for place, (right, wrong) in enumerate(zip(found.right, found.wrong, strict=True))
    ]


def used(manifest: Manifest) -> list[Used]:
    """Tell what each role's completions took, the judge's too where that is known."""
    return [
        Used(
            role,
            tokens.completions,
            tokens.prompt_tokens,
            tokens.completion_tokens,
            cost.cost_usd,
            cost.known,
            cost.known_usd,
        )
        for role, tokens in manifest.tokens.items()
        if (cost := manifest.cost[role])
    ]


FIGURES: Mapping[str, tuple[type[NamedTuple], Callable[[Manifest], Sequence[NamedTuple]]]] = {
    "asked": (Asked, asked),
    "accuracy": (Measure, accuracy),
    "flips": (Flip, flips),
    "mix": (Mix, mix),
    "yields": (Yield, yields),
    "losses": (Loss, losses),
    "values": (ValueBin, values),
    "used": (Used, used),
}


def figures(manifest: Manifest) -> "dict[str, pd.DataFrame]":
    """Return every figure of the report as a data frame, by name."""
    import pandas as pd

    return {name: pd.DataFrame(rows(manifest), columns=list(row._fields)) for name, (row, rows) in FIGURES.items()}


def percent(count: int, whole: int) -> float | None:
    """Return a share in percent; None of nothing."""
    return round(100 * count / whole, 2) if whole else None
