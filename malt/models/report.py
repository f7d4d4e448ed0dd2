"""The pages of a model version: the card, `README.md`, and the report, one HTML file that loads and runs nothing."""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined, Template

from malt.datasets.pages.page import page_environment
from malt.models.manifest import ModelManifest, RoleEntry

_FOLDER = Path(__file__).parent
_HUB_NAMES = {"embedded": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""What a base is called on the Hub, where its name here is another."""


class _Plot(NamedTuple):
    """A line over the steps of a stage."""

    title: str
    style: str
    points: str
    """In a square of 100 by 100."""
    first: str
    last: str
    low: str
    high: str
    steps: int


def render_card(manifest: ModelManifest) -> str:
    stages = sorted({stage.stage for entry in manifest.roles.values() for stage in entry.stages})
    return _card().render(
        manifest=manifest,
        stages=stages,
        base_model=_HUB_NAMES.get(manifest.base.name, manifest.base.name),
        dataset=manifest.dataset.reference,
        has_gguf=any(entry.gguf_sha256 for entry in manifest.roles.values()),
    )


def render_report(manifest: ModelManifest) -> str:
    plots = {role: list(_list_plots(entry)) for role, entry in manifest.roles.items()}
    return page_environment(_FOLDER).get_template("report.html.jinja").render(manifest=manifest, plots=plots)


@cache
def _card() -> Template:
    environment = Environment(  # noqa: S701 - Markdown, of our own words
        undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    )
    return environment.from_string((_FOLDER / "card.md.jinja").read_text(encoding="utf-8"))


def _list_plots(entry: RoleEntry) -> Iterator[_Plot]:
    """Yield loss and, for pairs, margin of every stage."""
    for stage in entry.stages:
        losses = [point.loss for point in stage.losses]
        if losses:
            yield _draw_plot(f"{stage.stage}: loss", "", losses)
        margins = [point.margin for point in stage.losses if point.margin is not None]
        if margins:
            yield _draw_plot(f"{stage.stage}: margin", "other", margins)


def _draw_plot(title: str, style: str, values: Sequence[float]) -> _Plot:
    """Draw values from left to right, the highest at the top."""
    low, high = min(values), max(values)
    across, tall = max(len(values) - 1, 1), (high - low) or 1.0
    points = " ".join(
        f"{100 * place / across:.2f},{95 - 90 * (value - low) / tall:.2f}" for place, value in enumerate(values)
    )
    first, last, lowest, highest = (f"{value:.4f}" for value in (values[0], values[-1], low, high))
    return _Plot(title, style, points, first, last, lowest, highest, len(values))
