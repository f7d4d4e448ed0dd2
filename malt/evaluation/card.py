"""Markdown of an evaluation: its card, `README.md`, Prefect's artifact, and the card of a model on the Hub.

All figures are those of summary and manifest. A model version never changes, and is evaluated after it was published,
so its own `README.md` has no results; its card on the Hub adds a `model-index` block and a table of them.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple

from malt.config.evaluate import Measure
from malt.config.roles import PLAYERS
from malt.datasets.manifest import CARD_FILE
from malt.datasets.stats.figures import format_count, format_dollars
from malt.evaluation.summary import (
    MEASURES,
    TITLES,
    Cell,
    Choice,
    Compared,
    Summary,
    SystemSummary,
    Worth,
    write_title,
)
from malt.evaluation.version import EvaluationManifest, EvaluationVersion, Player, list_evaluations
from malt.models.version import ModelVersion
from malt.sanitize import code_span, markdown_table
from malt.text import count_noun, draw_bar

if TYPE_CHECKING:
    from huggingface_hub import EvalResult


def render_card(manifest: EvaluationManifest, summary: Summary) -> str:
    questions, chains = count_noun(summary.questions, "question"), count_noun(summary.chains, "chain")
    sample = f"{questions} from {code_span(manifest.questions.source)}, {chains}"
    parts = [
        f"# {manifest.name} v{manifest.version}: evaluation",
        f"{sample} each; graded by {', '.join(manifest.grader)}. Intervals are 95 %, over questions.",
        _accuracy_table(summary),
        *_list_beside(summary),
        f"Differences to {code_span(summary.baseline)} ({summary.title}), paired by question:",
        _difference_table(summary),
        "\n".join(f"* {code_span(name)}: {system.refining.sentence}" for name, system in summary.systems.items()),
        _power_sentence(summary),
        *_worth_tables(summary),
        "Cost-accuracy frontier, by completion tokens a question:",
        _frontier_table(summary),
        *([_RACE.format(", ".join(map(code_span, summary.dropped)))] if summary.dropped else []),
    ]
    return "\n\n".join(parts) + "\n"


_RACE = "A race dropped {}: they could no longer win. A system that is truly best is dropped in at most 5 % of races."


def _worth_tables(summary: Summary) -> list[str]:
    head = ("model", "mean, %", "worth, points")
    return [
        f"Models as {role}, each averaged over all combinations of the others:\n\n"
        + markdown_table(head, [_worth_row(model, each) for model, each in worths.items()])
        for role, worths in summary.tournament.items()
    ]


def _worth_row(model: str, worth: Worth) -> tuple[str, str, str]:
    """Return a model's row: its name, its mean, and its worth in percentage points with the interval."""
    return code_span(model), f"{100 * worth.accuracy:.1f}", points(worth.worth, worth.low, worth.high)


def _frontier_table(summary: Summary) -> str:
    """Write the cost-accuracy frontier, from the cheapest on."""
    head = ("tokens", "system", "way", "right, %", "cost")
    rows = [_frontier_cells(each) for each in summary.frontier]
    return markdown_table(head, rows)


def _frontier_cells(way: Choice) -> tuple[object, ...]:
    return round(way.tokens), code_span(way.system), way.way, percent(way.cell), format_dollars(way.cost_usd)


def render_artifact(manifest: EvaluationManifest, summary: Summary, path: Path) -> str:
    """Write the figures for Prefect's UI, with bars of text instead of a picture."""
    parts = [
        f"# {manifest.reference}",
        f"- evaluation: {code_span(str(path))}\n- report: {code_span(str(path / 'report.html'))}",
        markdown_table(("system", "of", "0 to 100 %", "right, %"), _draw_bars(summary)),
        *_list_beside(summary),
        f"## Differences to {code_span(summary.baseline)}, {summary.title}",
        _difference_table(summary),
        _power_sentence(summary),
    ]
    return "\n\n".join(parts) + "\n"


def _draw_bars(summary: Summary) -> Iterator[tuple[str, ...]]:
    for name, system in summary.systems.items():
        for measure in summary.measures:
            cell: Cell = getattr(system, measure)
            yield code_span(name), TITLES[measure], draw_bar(100 * (cell.accuracy or 0)), percent(cell)


def _accuracy_table(summary: Summary) -> str:
    head = ("system", *(TITLES[measure] for measure in summary.measures), "tokens", "cost")
    rows = [
        (
            code_span(name),
            *(percent(getattr(system, measure)) for measure in summary.measures),
            format_count(system.tokens),
            format_dollars(system.cost_usd),
        )
        for name, system in summary.systems.items()
    ]
    return markdown_table(head, rows)


def _list_beside(summary: Summary) -> list[str]:
    """Write the controls of all systems as one list, a line a system; return nothing where there are none."""
    controls = {name: _describe_beside(system) for name, system in summary.systems.items()}
    lines = [f"* {code_span(name)}: {figures}" for name, figures in controls.items() if figures]
    return ["\n".join(lines)] if lines else []


def _describe_beside(system: SystemSummary) -> str:
    return "; ".join(f"{title} {percent(cell)}" for title, cell in system.beside())


def _difference_table(summary: Summary) -> str:
    rows = [_difference_cells(name, compared) for name, compared in summary.differences.items()]
    return markdown_table(("system", "difference", "p", "p (Holm)"), rows)


def _difference_cells(name: str, row: Compared) -> tuple[str, ...]:
    return code_span(name), points(row.difference, row.low, row.high), _write_p(row.p), _write_p(row.p_holm)


def _power_sentence(summary: Summary) -> str:
    smallest = "; ".join(_list_smallest(summary)) or "none"
    return f"Smallest difference that {summary.questions:,} questions show with 80 % power: {smallest}."


def _list_smallest(summary: Summary) -> Iterator[str]:
    for name, smallest in summary.smallest_difference.items():
        if smallest is not None:
            yield f"{100 * smallest:.1f} points {'' if name.startswith('at') else 'for '}{name}"


def percent(cell: Cell) -> str:
    if cell.accuracy is None or cell.low is None or cell.high is None:
        return "n/a"
    return f"{100 * cell.accuracy:.1f} ({100 * cell.low:.1f} to {100 * cell.high:.1f})"


def points(gain: float, low: float, high: float) -> str:
    """Write a difference of two shares in percentage points, with its interval."""
    return f"{100 * gain:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _write_p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


_INTRODUCTION = "Share of held-out questions that are answered right, with 95 % intervals."


class Result(NamedTuple):
    """Accuracy of a system in which the model plays, in one way of answering."""

    evaluation: EvaluationVersion
    system: str
    measure: Measure
    cell: Cell

    @property
    def way(self) -> str:
        """Single agent or pipeline, and the number of votes."""
        return write_title(self.measure, self.evaluation.summary.chains)


def find_results(version: ModelVersion) -> list[Result]:
    """Return the results of each evaluation, from its newest version that has this model in a role."""
    ids = _identifiers_of(version)
    newest = {each.name: results for each in list_evaluations().versions if (results := [*_read_results(each, ids)])}
    return [result for results in newest.values() for result in results]


def _identifiers_of(version: ModelVersion) -> set[str | None]:
    """Return the identifiers of a model's roles in evaluations: digests, and the names of adapters on a server."""
    roles = version.manifest.roles
    return {version.adapter_name(role) for role in roles} | {entry.gguf_sha256 for entry in roles.values()} - {None}


def _read_results(evaluation: EvaluationVersion, identifiers: Set[str | None]) -> Iterator[Result]:
    for system, players in evaluation.manifest.models.items():
        for measure in _list_measures(players, identifiers, evaluation.summary.chains):
            cell: Cell = getattr(evaluation.summary.systems[system], measure)
            if cell.accuracy is not None:
                yield Result(evaluation, system, measure, cell)


def _list_measures(players: Mapping[str, Player], identifiers: Set[str | None], chains: int) -> Iterator[Measure]:
    """Yield the ways of answering in which a model takes part."""
    roles = {role for role, each in players.items() if identifiers & {each.digest, each.model.rpartition("/")[2]}}
    ways = 2 if chains > 1 else 1
    if PLAYERS[0] in roles:
        yield from MEASURES[:ways]
    if roles and len(players) > 1:
        yield from MEASURES[2 : 2 + ways]


def render_model_card(version: ModelVersion, results: Sequence[Result]) -> str:
    """Return a version's card with results: as metadata, which the Hub shows beside the text, and as a table."""
    from huggingface_hub import ModelCard

    card = ModelCard((version.path / CARD_FILE).read_text(encoding="utf-8"))
    card.data["model_name"] = version.name
    card.data["eval_results"] = [_describe(result) for result in results]
    return f"{str(card).rstrip()}\n\n## Evaluations\n\n{_INTRODUCTION}\n\n{_result_table(results)}\n"


def _describe(result: Result) -> "EvalResult":
    """Return a result as the Hub's metadata; the digest of the question file is its revision."""
    from huggingface_hub import EvalResult

    questions, cell = result.evaluation.manifest.questions, result.cell
    source = questions.source.removeprefix("hf://datasets/")
    file = PurePath(source).name
    return EvalResult(
        task_type="text-generation",
        dataset_type=file if source == questions.source else "/".join(source.split("/")[:2]),
        dataset_name=file,
        dataset_revision=questions.sha256,
        metric_type="accuracy",
        metric_name=f"{result.system}: {result.way} ({result.evaluation.reference})",
        metric_value=round(cell.accuracy or 0.0, 4),
        metric_args={"low": round(cell.low or 0.0, 4), "high": round(cell.high or 0.0, 4), "questions": cell.questions},
    )


def _result_table(results: Sequence[Result]) -> str:
    head = ("evaluation", "system", "way", "right, %", "questions")
    return markdown_table(head, map(_result_cells, results))


def _result_cells(result: Result) -> tuple[object, ...]:
    names = code_span(result.evaluation.reference), code_span(result.system)
    return *names, result.way, percent(result.cell), result.cell.questions
