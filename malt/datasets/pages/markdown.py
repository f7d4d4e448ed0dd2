"""The figures of a report as Markdown, for where only that is shown."""

from base64 import b64encode
from collections.abc import Iterable

from malt.datasets.manifest import Manifest
from malt.datasets.pages import figures
from malt.datasets.pages.page import count, dollars, render_picture, share
from malt.sanitize import visible

BAR = 20
"""Characters of a bar for the whole."""


def figures_markdown(manifest: Manifest) -> str:
    """Write the figures of the report: the picture, as an image that needs no file beside it, and a table each."""
    parts = {
        "How often the answers are right": accuracy_table(manifest),
        "What critique and refinement change": flips_table(manifest),
        "What became of the questions": mix_table(manifest),
        "What can be trained on": yields_table(manifest),
        "What it took": used_table(manifest),
    }
    picture = b64encode(render_picture(manifest).encode()).decode()
    tables = (f"## {title}\n\n{table}" for title, table in parts.items() if table)
    return "\n\n".join([f"![the figures](data:image/svg+xml;base64,{picture})", *tables])


def accuracy_table(manifest: Manifest) -> str:
    """How often each role was right, and what a vote makes of it."""
    return table(
        ("of", "right", "of", "95 % interval"),
        [(each.measure, share(each.percent), count(each.known), interval(each)) for each in figures.accuracy(manifest)],
    )


def interval(measure: figures.Measure) -> str:
    """Write an interval, where there is one."""
    return "" if measure.low is None or measure.high is None else f"{measure.low:.1f} to {measure.high:.1f} %"


def flips_table(manifest: Manifest) -> str:
    """What became of answers; nothing where nobody diagnosed them."""
    rows = [
        (f"{each.before} → {each.after}", count(each.leaves), share(each.percent)) for each in figures.flips(manifest)
    ]
    return table(("generation → refinement", "refinements", "share"), rows) if rows else ""


def mix_table(manifest: Manifest) -> str:
    """What became of all questions."""
    rows = [
        (each.kind, bar(each.percent), count(each.questions), share(each.percent)) for each in figures.mix(manifest)
    ]
    return table(("questions", "", "", "share"), rows)


def yields_table(manifest: Manifest) -> str:
    """How many candidates became rows, and what each gate left out."""
    lost = figures.losses(manifest)
    return table(
        ("rows", "", "kept", "candidates", "left out by"),
        [
            (
                f"{each.kind}/{each.role}",
                bar(kept_share(each)),
                count(each.kept),
                count(each.candidates),
                gates(each, lost),
            )
            for each in figures.yields(manifest)
        ],
    )


def kept_share(each: figures.Yield) -> float | None:
    """The share of candidates that was kept, in percent."""
    return figures.percent(each.kept, each.candidates)


def gates(each: figures.Yield, losses: Iterable[figures.Loss]) -> str:
    """List the gates that left something out of one kind of rows."""
    own = [loss for loss in losses if (loss.role, loss.kind) == (each.role, each.kind) and loss.lost]
    return ", ".join(f"{loss.lost:,} {loss.gate}" for loss in own) or "nothing"


def used_table(manifest: Manifest) -> str:
    """What each role's completions took."""
    return table(
        ("role", "completions", "prompt tokens", "completion tokens", "cost"),
        [
            (
                each.role,
                *map(count, (each.completions, each.prompt_tokens, each.completion_tokens)),
                dollars(each.cost_usd),
            )
            for each in figures.used(manifest)
        ],
    )


def bar(percent: float | None) -> str:
    """Draw a share."""
    filled = round(BAR * (percent or 0) / 100)
    return "█" * filled + "░" * (BAR - filled)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Lay out a table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(visible(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
