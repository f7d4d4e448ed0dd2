"""The command that goes round: `improve`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from malt.cli import runs, terminal
from malt.cli.options import takes_config, takes_json

if TYPE_CHECKING:
    from malt.config.spec import RunSpec
    from malt.improvement.figures import RoundFigures, SystemRow
    from malt.improvement.summary import Improvement


@click.command()
@takes_config
@click.option("--rounds", type=click.IntRange(1), metavar="N", help="How many rounds in all; overrides improve.rounds.")
@takes_json
def improve(config: Path, override: tuple[str, ...], limit: int | None, rounds: int | None, as_json: bool) -> int:
    """Grow, train, evaluate, keep what is better; N times. Goes on where an earlier call was stopped."""
    from malt.config.loader import load_spec
    from malt.config.settings import Settings
    from malt.hosting.private_prefect import connect
    from malt.improvement.figures import read_figures
    from malt.improvement.improve import check

    spec = load_spec(config, [*override, *([f"improve.rounds={rounds}"] if rounds else [])], limit)
    check(spec, Settings())
    missing = runs.find_missing()
    if missing:
        terminal.warn(f"this is not recorded in Prefect: that needs {missing}")
    done = _improve_here(spec) if missing else runs.flow_result("improve", spec, connect(Settings().data_dir))
    terminal.emit(done.model_dump(mode="json")) if as_json else _show(read_figures(done))
    if done.used.failed_branches:
        terminal.warn(f"error: {done.used.failed_branches} failed branches; their questions are in no version")
    return done.exit_code


def _improve_here(spec: "RunSpec") -> "Improvement":
    from malt.cli.progress import training_progress
    from malt.config.settings import Settings
    from malt.engine import signals
    from malt.improvement.improve import Here, improve_alone

    settings = Settings()
    with training_progress() as tell:
        return signals.run(improve_alone(spec, settings, Here(settings, tell)))


def _show(figures: "RoundFigures") -> None:
    """Print accuracy by round, what each role's training gave, and where the report is."""
    from malt.evaluation.card import points

    done = figures.done
    terminal.say(done.sentence, style="bold")
    _show_rounds(figures)
    for worth in figures.worths:
        terminal.say(f"  training of {worth.of} gave {points(worth.compared)} points")
    for name, rows in {"at the end": figures.closing, **figures.beside}.items():
        if rows:
            _show_rows(name, rows)
    used = done.used
    terminal.say(
        f"{used.requests:,} requests, {used.completions:,} completions, {used.roles_trained} roles trained; this call "
        f"cost {terminal.format_dollars(used.cost_usd)} and took {done.wall_s:.0f} s"
    )
    terminal.say(f"report: {terminal.shorten_path(done.report or '')}")


def _show_rounds(figures: "RoundFigures") -> None:
    from malt.evaluation.card import percent
    from malt.evaluation.summary import MEASURES
    from malt.improvement.report import tell_gain

    votes = f"@{figures.chains}"
    table = terminal.new_table("", "models.", "SA", f"SA+MV{votes}", "MA", f"MA+MV{votes}", "cut off", "gain", "")
    for line in figures.lines:
        cells = (percent(line.cells[measure]) for measure in MEASURES)
        kept = "" if line.judgement is None else "kept" if line.judgement.is_kept else "not kept"
        table.add_row(line.title, line.models or "the config's", *cells, f"{100 * line.truncated:.1f} %",
                      tell_gain(line.judgement), kept)  # fmt: skip
    terminal.say(table)


def _show_rows(name: str, rows: "list[SystemRow]") -> None:
    from malt.evaluation.card import percent

    table = terminal.new_table(f"{name}.", *rows[0].cells)
    for row in rows:
        table.add_row(row.system, *map(percent, row.cells.values()))
    terminal.say(table)
