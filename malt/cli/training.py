"""Commands that make models of datasets: `train`, `models`."""

from pathlib import Path

import click

from malt.cli.options import takes_json, takes_version


@click.command()
@takes_version
@click.option("-c", "--config", type=click.Path(path_type=Path), metavar="CONFIG", help="Take [train] of this config.")
@click.option("-s", "--set", "override", multiple=True, metavar="KEY=VALUE", help="Override a key, such as train.base.")
@click.option("--plan", "plans", is_flag=True, help="Say what it would take, and train nothing.")
@takes_json
def train(version: str, config: Path | None, override: tuple[str, ...], plans: bool, as_json: bool) -> None:
    """Train the roles on a dataset version; a model version comes of it. Goes on where an earlier call was stopped."""
    from malt.cli.console import terminal, training
    from malt.config.settings import Settings
    from malt.datasets.version.dataset_version import open_version
    from malt.training.plan import plan
    from malt.training.run import train as train_roles
    from malt.training.settings import declared

    opened = open_version(version)
    spec = declared(opened, config, override)
    if plans:
        quoted = plan(opened, spec, Settings())
        terminal.emit(quoted.model_dump(mode="json")) if as_json else training.show_plan(quoted)
        return
    with training.progress() as tell:
        summary = train_roles(opened, spec, tell=tell)
    terminal.emit(summary.model_dump(mode="json")) if as_json else training.show_summary(summary)


@click.command()
@click.argument("name", required=False)
@takes_json
def models(name: str | None, as_json: bool) -> int:
    """List model versions. Roles, base, what they were trained on, digest, date."""
    from malt.cli.console import terminal, training
    from malt.config.settings import Settings
    from malt.models.version import list_models

    listed, unreadable = list_models(Settings().models_dir, name)
    if as_json:
        terminal.emit(training.listing(listed, unreadable))
    else:
        training.show_models(listed, unreadable)
    return 1 if unreadable else 0
