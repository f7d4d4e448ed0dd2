"""Arguments and options of several commands, and the lookup of the versions and roles that they name."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from malt.config.roles import Role
    from malt.datasets.version.dataset_version import DatasetVersion
    from malt.evaluation.version import EvaluationVersion
    from malt.models.version import ModelVersion

    AnyVersion = DatasetVersion | ModelVersion | EvaluationVersion

F = TypeVar("F", bound=Callable[..., Any])


class WholeNumber(click.IntRange):
    """A whole number within bounds, called so in messages."""

    name = "whole number"


def takes_config(command: F) -> F:
    """Add the CONFIG argument to a command, and the options that override its keys."""
    for add in (
        click.option("--limit", type=WholeNumber(1), metavar="N", help="Take the first N questions."),
        click.option(
            "-s", "--set", "override", multiple=True, metavar="KEY=VALUE", help="Override a key by dotted path."
        ),
        click.argument("config", type=click.Path(path_type=Path), metavar="CONFIG"),
    ):
        command = add(command)
    return command


def takes_grading(command: F) -> F:
    """Add the option for a config that declares the graders, and the option that overrides its keys."""
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


def open_any(reference: str) -> "AnyVersion":
    """Open the dataset, model or evaluation version that the reference names."""
    from malt.datasets.version.dataset_version import open_version
    from malt.datasets.version.published import find_kind
    from malt.evaluation.version import open_evaluation
    from malt.models.version import open_model

    openers: dict[str, Callable[[str], AnyVersion]] = {"models": open_model, "evaluations": open_evaluation}
    return openers.get(find_kind(reference), open_version)(reference)


def find_role(name: str, what: str = "--role ") -> "Role":
    """Return the trained role of this name. Raises `InputError` for an unknown name."""
    from malt.config.roles import PLAYERS
    from malt.errors import InputError

    for role in PLAYERS:
        if role.value == name:
            return role
    raise InputError(f"{what}{name}: no such role; there are: {', '.join(PLAYERS)}")
