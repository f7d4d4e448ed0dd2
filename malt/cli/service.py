"""Commands that serve or check: `up`, `doctor`, `serve`."""

import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from malt.cli import terminal
from malt.cli.options import WholeNumber, takes_config, takes_json
from malt.errors import ConfigError

if TYPE_CHECKING:
    from malt.hosting.doctor import Check


@click.command()
@click.option(
    "--port", type=WholeNumber(1, 65535), default=4200, show_default=True, help="Port of the server and its UI."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--redeploy", is_flag=True, help="Reset all deployments to prefect.yaml, whatever the UI set.")
@click.option("--postgres", is_flag=True, help="Keep the server's records in PostgreSQL: for more than a trial.")
def up(port: int, host: str, redeploy: bool, postgres: bool) -> None:
    """Serve Prefect's UI with all deployments and a worker. If PREFECT_API_URL names a server, those join it."""
    from malt.config.settings import Settings
    from malt.hosting.up import up as serve

    project, data_dir = _find_project(), Settings().data_dir
    serve(project, data_dir, click.echo, host=host, port=port, redeploy=redeploy, postgres=postgres)


@click.command()
@takes_config
@takes_json
def doctor(config: Path, override: tuple[str, ...], limit: int | None, as_json: bool) -> int:
    """Check what a run needs, each endpoint by one cheap call. Shows what works, what fails, what to do."""
    from malt.config.loader import load_spec
    from malt.config.settings import Settings
    from malt.hosting.doctor import examine

    examined = examine(load_spec(config, override, limit), Settings())
    checks = list(examined if as_json else _show_each(examined))
    works = all(check.works for check in checks)
    if as_json:
        terminal.emit({"works": works, "checks": [check._asdict() for check in checks]})
    return 0 if works else 1


def _show_each(checks: Iterable["Check"]) -> Iterator["Check"]:
    for check in checks:
        terminal.say(f"{'works' if check.works else 'FAILS'}  {check.subject}: {check.detail}")
        yield check


@click.command()
@takes_config
@click.option("--system", metavar="NAME", help="System of [evaluate.systems]; by default the first.")
@click.option("--port", type=WholeNumber(1, 65535), default=8400, show_default=True, help="Port on 127.0.0.1.")
def serve(config: Path, override: tuple[str, ...], limit: int | None, system: str | None, port: int) -> None:
    """Serve the trio as one OpenAI-compatible model. On loopback, with a new key, or that in MALT_SERVE_KEY."""
    import os
    import sys

    from malt.config.loader import load_spec
    from malt.config.settings import Settings
    from malt.hosting import serving

    trio = serving.open_trio(load_spec(config, override, limit), system, Settings())
    claimed = serving.claim_port(port)
    key = os.environ.get("MALT_SERVE_KEY") or serving.new_key()
    _show_address(port, trio.name, key if "MALT_SERVE_KEY" not in os.environ else "as in MALT_SERVE_KEY")
    sys.stdout.flush()  # a pipe is buffered: its reader would see the address only when the server ends
    serving.serve(trio, key, claimed)


def _show_address(port: int, model: str, key: str) -> None:
    terminal.say(f"base URL  http://127.0.0.1:{port}/v1")
    terminal.say(f"model     {model}")
    terminal.say(f"key       {key}")


def _find_project() -> Path:
    """Return the checkout that holds flows/. Raises `ConfigError` without one."""
    flows = importlib.util.find_spec("flows")
    folder = Path(flows.origin).parents[1] if flows and flows.origin else Path.cwd()
    if not (folder / "prefect.yaml").is_file():
        raise ConfigError(f"`malt up` needs prefect.yaml and flows/ (looked in {folder}): run it from a checkout")
    return folder
