"""The figures of a report as Markdown, for where only that is shown."""

from base64 import b64encode
from collections.abc import Iterable

from malt.datasets.manifest import Manifest
from malt.datasets.pages.page import render_picture
from malt.datasets.stats import figures
from malt.datasets.stats.diagnostics import percent
from malt.datasets.stats.figures import format_count, format_dollars, format_share
from malt.sanitize import Markdown, markdown_table

_GRADES = {"right": "correct", "wrong": "incorrect"}
_KINDS = {"all right": "all positive", "all wrong": "all negative"}
_BAR = 20
"""Characters of a bar for the whole."""


def figures_markdown(manifest: Manifest) -> str:
    """Write the figures of the report: the picture, as an image that needs no file beside it, and a table each."""
    parts = {
        "How often the answers are correct": _accuracy_table(manifest),
        "What critique and refinement change": _flips_table(manifest),
        "What became of the questions": _mix_table(manifest),
        "What can be trained on": _yields_table(manifest),
        "What it took": _usage_table(manifest),
    }
    picture = b64encode(render_picture(manifest).encode()).decode()
    tables = (f"## {title}\n\n{table}" for title, table in parts.items() if table)
    return "\n\n".join([f"![the figures](data:image/svg+xml;base64,{picture})", *tables])


def _accuracy_table(manifest: Manifest) -> Markdown:
    rows = [
        (each.measure, format_share(each.percent), each.known, _interval(each))
        for each in figures.measure_accuracy(manifest)
    ]
    return markdown_table(("of", "correct", "of", "95 % interval"), rows)


def _interval(measure: figures.Measure) -> str:
    return "" if measure.low is None or measure.high is None else f"{measure.low:.1f} to {measure.high:.1f} %"


def _flips_table(manifest: Manifest) -> Markdown:
    flips = figures.list_flips(manifest)
    rows = [
        (f"{_GRADES[each.before]} → {_GRADES[each.after]}", each.leaves, format_share(each.percent)) for each in flips
    ]
    return markdown_table(("generation → refinement", "refinements", "share"), rows) if rows else Markdown()


def _mix_table(manifest: Manifest) -> Markdown:
    rows = [
        (_KINDS.get(each.kind, each.kind), _bar(each.percent), each.questions, format_share(each.percent))
        for each in figures.list_mix(manifest)
    ]
    return markdown_table(("questions", "", "", "share"), rows)


def _yields_table(manifest: Manifest) -> Markdown:
    losses = list(figures.list_losses(manifest))
    rows = [
        (f"{kind}/{role}", _bar(percent(kept, candidates)), kept, candidates, _gates(role, kind, losses))
        for role, kind, candidates, kept in figures.list_yields(manifest)
    ]
    return markdown_table(("rows", "", "kept", "candidates", "left out by"), rows)


def _gates(role: str, kind: str, losses: Iterable[figures.Loss]) -> str:
    own = [loss for loss in losses if (loss.role, loss.kind) == (role, kind) and loss.lost]
    return ", ".join(f"{loss.lost:,} {loss.gate}" for loss in own) or "nothing"


def _usage_table(manifest: Manifest) -> Markdown:
    rows = [
        (
            each.role,
            each.completions,
            *map(format_count, (each.prompt_tokens, each.completion_tokens)),
            Markdown(format_dollars(each.cost_usd)),
        )
        for each in figures.list_usage(manifest)
    ]
    return markdown_table(("role", "completions", "prompt tokens", "completion tokens", "cost"), rows)


def _bar(percent: float | None) -> str:
    filled = round(_BAR * (percent or 0) / 100)
    return "█" * filled + "░" * (_BAR - filled)
