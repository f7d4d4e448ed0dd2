"""Arguments and options that several commands take."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def takes_config(command: F) -> F:
    """Give a command its CONFIG argument, and the options that change it."""
    for add in (
        click.option("--limit", type=click.IntRange(1), metavar="N", help="Take the first N questions."),
        click.option(
            "-s", "--set", "override", multiple=True, metavar="KEY=VALUE", help="Override a key by dotted path."
        ),
        click.argument("config", type=click.Path(path_type=Path), metavar="CONFIG"),
    ):
        command = add(command)
    return command


def takes_grading(command: F) -> F:
    """Give a command the config that declares its graders, and the option that changes it."""
    for add in (
        click.option("-s", "--set", "override", multiple=True, metavar="KEY=VALUE", help="Override a key of C."),
        click.option("--config", type=click.Path(path_type=Path), metavar="C", help="Take the evaluator of a config."),
    ):
        command = add(command)
    return command


takes_version = click.argument("version", metavar="VERSION")
trusts_code = click.option("--trust-code", is_flag=True, help="Run the grader's code that the version names.")
takes_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else.")
shows_files = click.option("--files", is_flag=True, help="Print the rows of each file too.")
