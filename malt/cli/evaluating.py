"""Commands that evaluate: `evaluate`, `evaluations`."""

from pathlib import Path

import click

from malt.cli.options import takes_config, takes_json


@click.command()
@takes_config
@takes_json
def evaluate(config: Path, override: tuple[str, ...], limit: int | None, as_json: bool) -> int:
    """Compare systems on held-out questions, paired by question. Asks only for what the store does not hold."""
    from malt.cli.console import evaluating, terminal
    from malt.config.loader import load_spec
    from malt.config.settings import Settings
    from malt.engine import signals
    from malt.evaluation.evaluate import evaluate_job, limited, new_run
    from malt.evaluation.job import check_systems, read_evaluation

    job = read_evaluation(load_spec(config, limited(override, limit)))
    check_systems(job)
    done = signals.run(evaluate_job(job, Settings(), new_run()))
    terminal.emit(done.told()) if as_json else evaluating.show_evaluated(done)
    evaluating.show_failures(done)
    return done.exit_code


@click.command()
@click.argument("name", required=False)
@takes_json
def evaluations(name: str | None, as_json: bool) -> int:
    """List evaluations: questions, systems, digest, date."""
    from malt.cli.console import evaluating, terminal
    from malt.evaluation.version import list_evaluations

    listed = list_evaluations(name)
    terminal.emit(evaluating.listing(listed)) if as_json else evaluating.show_evaluations(listed)
    return 1 if listed.unreadable else 0
