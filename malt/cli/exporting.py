"""Commands that take a version elsewhere: `export`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from malt.cli.options import takes_json, takes_version

if TYPE_CHECKING:
    from malt.config.spec import Role
    from malt.questions.screening import Split


class ListsFormats(click.Command):
    """A command whose help ends with the formats; they are read only for that."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's own
        """Write the list."""
        from malt.datasets.export.formats import FORMATS

        with formatter.section("Formats"):
            formatter.write_dl([(name, form.about) for name, form in FORMATS.items()])


@click.command(cls=ListsFormats)
@takes_version
@click.option("--to", required=True, metavar="FORMAT", help="One of the formats below.")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--role", "roles", multiple=True, metavar="ROLE", help="Only this role; may be repeated. Default: all.")
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only sft, dpo or kto rows; may be repeated.")
@click.option("--split", type=click.Choice(["train", "validation"]), help="Only this split. Default: both.")
@takes_json
def export(
    version: str,
    to: str,
    directory: Path,
    roles: tuple[str, ...],
    kinds: tuple[str, ...],
    split: "Split | None",
    as_json: bool,
) -> None:
    """Write a version's rows in another trainer's format. DIR is a new or empty folder, or an earlier export."""
    from malt.cli.console import sending, terminal
    from malt.datasets.export.export import Choice
    from malt.datasets.export.export import export as exported_to
    from malt.datasets.version.dataset_version import open_version

    choice = Choice(tuple(map(player, roles)), kinds, (split,) if split else ())
    exported = exported_to(open_version(version), to, directory, choice)
    sending.show_export_warnings(exported)
    terminal.emit(exported.as_json()) if as_json else sending.show_export(exported)


def player(name: str) -> "Role":
    """Return the trained role of a name. Raises `InputError`."""
    from malt.config.spec import PLAYERS
    from malt.errors import InputError

    found = [role for role in PLAYERS if role.value == name]
    if not found:
        raise InputError(f"--role {name}: no such role; there are: {', '.join(PLAYERS)}")
    return found[0]
