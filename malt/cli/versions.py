"""Commands that look at versions: `datasets`, `show`, `report`, `explain`, `diff`, `verify`."""

import json
from pathlib import Path

import click

from malt.cli.options import takes_json, takes_version


@click.command()
@click.argument("name", required=False)
@takes_json
def datasets(name: str | None, as_json: bool) -> int:
    """List versions: number, rows per file, content digest, date."""
    from malt.cli.console import terminal, versions
    from malt.config.settings import Settings
    from malt.datasets.version.dataset_version import list_versions

    listed = list_versions(Settings().datasets_dir, name)
    terminal.emit(versions.listing(listed)) if as_json else versions.show_versions(listed)
    return 1 if listed.unreadable else 0


@click.command()
@takes_version
@click.argument("question_id", required=False)
@takes_json
def show(version: str, question_id: str | None, as_json: bool) -> None:
    """Show what is in a version, or one question's valued tree."""
    from malt.cli.console import terminal, versions
    from malt.datasets.version.dataset_version import open_version

    opened = open_version(version)
    if question_id is None:
        terminal.emit(opened.manifest.model_dump(mode="json")) if as_json else versions.show_version(opened)
    elif as_json:
        nodes = json.loads(opened.tree_rows(question_id).to_json(orient="records"))
        terminal.emit({"version": opened.reference, "question_id": question_id, "nodes": nodes})
    else:
        versions.show_tree(opened, question_id)


@click.command()
@takes_version
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Draw it anew into FILE.")
@click.option("--open", "opens", is_flag=True, help="Show it in the browser.")
@takes_json
def report(version: str, out: Path | None, opens: bool, as_json: bool) -> None:
    """Name a version's report, one HTML file. It needs no network; --open shows it."""
    from malt.cli.console import terminal
    from malt.datasets.pages.page import find_report
    from malt.datasets.version.dataset_version import open_version

    opened = open_version(version)
    path = find_report(opened, out)
    if as_json:
        terminal.emit({"version": opened.reference, "report": str(path)})
    else:
        terminal.out.print(terminal.from_here(str(path)), markup=False, soft_wrap=True)
    if opens:
        click.launch(path.as_uri())


@click.command()
@takes_version
@click.argument("row_id", metavar="ROW_ID")
@takes_json
def explain(version: str, row_id: str, as_json: bool) -> None:
    """Explain where a row or a node comes from. Texts, grades, arithmetic, gates; a node is QUESTION_ID/2.0.1."""
    from malt.cli.console import explaining, terminal
    from malt.datasets.check.explain import explain as explained
    from malt.datasets.version.dataset_version import open_version

    told = explained(open_version(version), row_id)
    terminal.emit(told.model_dump(mode="json")) if as_json else explaining.show_explanation(told)


@click.command()
@click.argument("old", metavar="A")
@click.argument("new", metavar="B")
@takes_json
def diff(old: str, new: str, as_json: bool) -> None:
    """Say what changed from version A to version B. Inputs, and rows added, removed, relabelled, by question."""
    from malt.cli.console import comparing, terminal
    from malt.datasets.check.compare import compare
    from malt.datasets.version.dataset_version import open_version

    found = compare(open_version(old), open_version(new), None if as_json else comparing.QUESTIONS_SHOWN)
    terminal.emit(found.model_dump(mode="json")) if as_json else comparing.show_diff(found)


@click.command()
@takes_version
@takes_json
def verify(version: str, as_json: bool) -> int:
    """Recompute every digest and invariant of a version. Names what does not hold."""
    from malt.cli.console import terminal, versions
    from malt.datasets.check.verify import verify as problems_of
    from malt.datasets.version.dataset_version import open_version

    opened = open_version(version)
    problems = problems_of(opened)
    if as_json:
        terminal.emit({"version": opened.reference, "holds": not problems, "problems": [*problems]})
    else:
        versions.show_verdict(opened, problems)
    return 1 if problems else 0
