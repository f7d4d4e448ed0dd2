"""Commands about what surrounds a run: `up`, `doctor`."""

import importlib.util
from pathlib import Path

import click

from malt.errors import ConfigError


@click.command()
@click.option(
    "--port", type=click.IntRange(1, 65535), default=4200, show_default=True, help="Of the server and its UI."
)
def up(port: int) -> None:
    """Serve Prefect's UI with all deployments and a worker, or add those to the server at PREFECT_API_URL."""
    from malt.service import up as serve
    from malt.settings import Settings

    serve(project(), Settings().data_dir, port, click.echo)


def project() -> Path:
    """Return the checkout that flows/ lies in. Raises `ConfigError` where there is none."""
    flows = importlib.util.find_spec("flows")
    folder = Path(flows.origin).parents[1] if flows and flows.origin else Path.cwd()
    if not (folder / "prefect.yaml").is_file():
        raise ConfigError(f"`malt up` needs prefect.yaml and flows/ (looked in {folder}): run it from a checkout")
    return folder
