"""What evaluations found of a model version, as its card on the Hub tells it: a `model-index` block and a table.

A model version never changes, and is evaluated after it was published: its own `README.md` knows no results.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

from malt.config.roles import PLAYERS
from malt.datasets.manifest import CARD_FILE
from malt.evaluation.card import percent
from malt.evaluation.summary import MEASURES, Cell, Measure, write_title
from malt.evaluation.version import EvaluationVersion, Player, list_evaluations
from malt.models.adapters import name_adapter
from malt.models.version import ModelVersion
from malt.sanitize import code_span, markdown_table

if TYPE_CHECKING:
    from huggingface_hub import EvalResult


_INTRODUCTION = "Share of held-out questions that are answered right, with 95 % intervals."


class Result(NamedTuple):
    """How often a system with the model in it was right, in one way of answering."""

    evaluation: EvaluationVersion
    system: str
    measure: Measure
    cell: Cell

    @property
    def way(self) -> str:
        """Single agent or pipeline, and how many vote."""
        return write_title(self.measure, self.evaluation.summary.chains)


def find_results(version: ModelVersion) -> list[Result]:
    """Return what the newest version of each evaluation that has this model in a role found."""
    known = _known_as(version)
    newest = {each.name: found for each in list_evaluations().versions if (found := [*_read_results(each, known)])}
    return [result for found in newest.values() for result in found]


def _known_as(version: ModelVersion) -> set[str | None]:
    """Return what evaluations know a model's roles by: their digests, or the names of their adapters on a server."""
    roles = version.manifest.roles
    return {name_adapter(version, role) for role in roles} | {entry.gguf_sha256 for entry in roles.values()} - {None}


def _read_results(evaluation: EvaluationVersion, known: Set[str | None]) -> Iterator[Result]:
    for system, cast in evaluation.manifest.models.items():
        for measure in _list_measures(cast, known, evaluation.summary.chains):
            cell: Cell = getattr(evaluation.summary.systems[system], measure)
            if cell.accuracy is not None:
                yield Result(evaluation, system, measure, cell)


def _list_measures(cast: Mapping[str, Player], known: Set[str | None], chains: int) -> Iterator[Measure]:
    """Yield the ways of answering in which a model takes part."""
    played = {role for role, player in cast.items() if known & {player.digest, player.model.rpartition("/")[2]}}
    ways = 2 if chains > 1 else 1
    if PLAYERS[0] in played:
        yield from MEASURES[:ways]
    if played and len(cast) > 1:
        yield from MEASURES[2 : 2 + ways]


def render_card(version: ModelVersion, results: Sequence[Result]) -> str:
    """Return a version's card with results: the Hub shows the block beside the text, readers the table below it."""
    from huggingface_hub import ModelCard

    card = ModelCard((version.path / CARD_FILE).read_text(encoding="utf-8"))
    card.data["model_name"] = version.name
    card.data["eval_results"] = [_describe(result) for result in results]
    return f"{str(card).rstrip()}\n\n## Evaluations\n\n{_INTRODUCTION}\n\n{_write_table(results)}\n"


def _describe(result: Result) -> "EvalResult":
    """Write a result as the Hub's metadata has it; question files are told apart by their digests."""
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


def _write_table(results: Sequence[Result]) -> str:
    head = ("evaluation", "system", "way", "right, %", "questions")
    rows = [
        (*map(code_span, (each.evaluation.reference, each.system)), each.way, percent(each.cell), each.cell.questions)
        for each in results
    ]
    return markdown_table(head, rows)
