"""Commands that show and check versions: `datasets`, `show`, `report`, `verify`."""

import json
import tempfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from malt.cli import evaluating, summaries, terminal, training
from malt.cli.options import open_any, takes_json, takes_version
from malt.errors import VersionError

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from malt.cli.options import AnyVersion
    from malt.datasets.measures import GrowthSummary
    from malt.datasets.version.dataset_version import DatasetVersion

_QUESTIONS_SHOWN = 10
_COLOURS = {True: "green", False: "red"}


@click.command()
@click.argument("name", required=False)
@takes_json
def datasets(name: str | None, as_json: bool) -> int:
    """List versions: number, rows per file, content digest, date."""
    from malt.config.settings import Settings
    from malt.datasets.rows.tables import KINDS
    from malt.datasets.version.dataset_version import list_versions

    listed = list_versions(Settings().datasets_dir, name)
    if as_json:
        return terminal.emit_listing(listed, _describe)
    folder = Settings().datasets_dir.resolve()
    none_yet = f"no datasets yet in {folder} (MALT_DATA_DIR); make one with: malt run configs/quickstart.toml"
    columns = ("questions", *KINDS, "tags.")
    return terminal.show_listing(listed, columns, _list_cells, none_yet)


def _describe(version: "DatasetVersion") -> "dict[str, object]":
    return {"tags": [*version.tags], "rows": version.manifest.rows}


def _list_cells(version: "DatasetVersion") -> "Iterator[str]":
    from malt.datasets.rows.tables import count_rows

    yield from map("{:,}".format, (version.manifest.counts.complete, *count_rows(version.manifest.rows).values()))
    yield ", ".join(version.tags)


@click.command()
@takes_version
@click.argument("question_id", required=False)
@takes_json
def show(version: str, question_id: str | None, as_json: bool) -> None:
    """Show a version's content, or one question's tree with values."""
    from malt.datasets.version.published import find_kind

    shown = {"evaluations": evaluating.show, "models": training.show, "datasets": _show_dataset}
    shown[find_kind(version)](version, question_id, as_json=as_json)


def _show_dataset(version: str, question_id: str | None, *, as_json: bool) -> None:
    from malt.datasets.version.dataset_version import open_version

    opened = open_version(version)
    if question_id is None:
        terminal.emit(opened.manifest.model_dump(mode="json")) if as_json else _show_version(opened)
    elif as_json:
        nodes = json.loads(opened.tree_rows(question_id).to_json(orient="records"))
        terminal.emit({"version": opened.reference, "question_id": question_id, "nodes": nodes})
    else:
        _show_tree(opened, question_id)


def _show_version(version: "DatasetVersion") -> None:
    manifest, counts = version.manifest, version.manifest.counts
    terminal.show_head(version)
    complete = f"{counts.complete} of {counts.questions} questions complete"
    terminal.say(f"{complete}, {counts.failed_branches} failed branches")
    if manifest.growth.mode == "adaptive":
        _show_growth(manifest.growth)
    _show_roles(version)
    graders = ", ".join(manifest.spec.evaluator.kind)
    terminal.say(f"leaves: {summaries.describe_outcomes(counts.outcomes)}; graded by {graders}")
    _show_ledger(version)
    _show_findings(version)
    _show_questions(version)
    terminal.show_rows(manifest.rows)


def _show_growth(growth: "GrowthSummary") -> None:
    nodes = f"{growth.nodes:,} of {growth.nodes_in_full:,} nodes of full trees"
    terminal.say(f"grown adaptively: {nodes}; a value is {growth.values}")


def _show_roles(version: "DatasetVersion") -> None:
    from malt.config.roles import PLAYERS
    from malt.datasets.stats.figures import format_count

    manifest = version.manifest
    columns = ("model.", "samples", "nodes", "positive", "negative", "no label", "tokens out", "cost")
    table = terminal.new_table("role", *columns)
    for role in PLAYERS:
        labels, declared = manifest.counts.labels[role], manifest.spec.roles[role]
        figures = (declared.samples, manifest.counts.nodes[role], labels.right, labels.wrong, labels.none)
        tokens = format_count(manifest.tokens[role].completion_tokens)
        cost = terminal.format_dollars(manifest.cost[role].cost_usd)
        table.add_row(role.value, terminal.shorten_name(declared.model), *map(str, figures), tokens, cost)
    terminal.say(table)


def _show_ledger(version: "DatasetVersion") -> None:
    """Print each run's contribution to a version, and its cost."""
    from malt.datasets.stats.figures import format_count

    table = terminal.new_table("run", "role.", "model.", "completions", "tokens in", "tokens out", "cost")
    for entry in version.manifest.ledger:
        tokens = map(format_count, (entry.tokens.prompt_tokens, entry.tokens.completion_tokens))
        cost = terminal.format_dollars(entry.cost.cost_usd)
        made = f"{entry.tokens.completions:,}"
        table.add_row(entry.run or "unknown", entry.role.value, terminal.shorten_name(entry.model), made, *tokens, cost)
    terminal.say(table)


def _show_findings(version: "DatasetVersion") -> None:
    from malt.datasets.stats.figures import describe_diagnostics, describe_losses

    for subject, finding in describe_diagnostics(version.manifest.diagnostics):
        terminal.say(f"  {subject:<12} {finding}")
    for file, candidates, kept, dropped in describe_losses(version.manifest):
        if dropped:
            terminal.say(f"  {file:<15} {kept:,} of {candidates:,} candidates kept; left out: {dropped}")


def _show_questions(version: "DatasetVersion") -> None:
    """Print the first questions with their ids and their numbers of right leaves."""
    from malt.datasets.version.reading import reading

    with reading(version.path):
        lines, more = _describe_questions(version)
    for line in lines:
        terminal.say(f"  {line}")
    if more:
        terminal.say(f"  … and {more} more questions in questions.parquet")


def _describe_questions(version: "DatasetVersion") -> tuple[list[str], int]:
    """Return one line for each of the first questions, and the number of the others."""
    from malt.config.roles import PLAYERS

    leaves = version.trajectories.query(f"role == '{PLAYERS[-1]}'")
    right = leaves.assign(right=leaves.outcome == "right").groupby("question_id", sort=False).right.agg(["sum", "size"])
    asked = dict(zip(version.questions.question_id, version.questions.question, strict=True))
    shown = right.head(_QUESTIONS_SHOWN).iterrows()
    lines = [f"{each}  {row['sum']} of {row['size']} correct  {terminal.one_line(asked[each])}" for each, row in shown]
    return lines, len(right) - len(lines)


def _show_tree(version: "DatasetVersion", question_id: str) -> None:
    """Print one question's tree: every node's value, label and text, every leaf's grade."""
    from malt.datasets.version.reading import reading

    with reading(version.path, f"question {question_id!r} of {version.reference}"):
        tree = _draw_tree(version, question_id)
    terminal.say(tree)


def _draw_tree(version: "DatasetVersion", question_id: str) -> "Tree":
    from rich.tree import Tree

    rows = version.tree_rows(question_id)
    asked = version.questions.query("question_id == @question_id").to_dict("records")[0]
    question = (terminal.one_line(asked["question"]), "bold")
    root = Tree(terminal.styled(question, f"\nreference: {asked['ground_truth']}"))
    branches = {"": root}
    for row in rows.astype(object).where(rows.notna(), None).to_dict("records"):
        parent = branches[row["node_id"].rpartition(".")[0]]
        branches[row["node_id"]] = parent.add(_node_text(row))
    return root


def _node_text(row: Mapping[Hashable, Any]) -> "Text":
    value = "no value" if row["label"] is None else f"{row['value']:.2f}"
    grade = f" {row['outcome']}" if row["outcome"] else ""
    read = f", read {row['answer']!r}" if row["answer"] else ""
    head = f"{row['role']} {row['node_id']}  {value}{grade}"
    text = terminal.one_line(row["text"])
    return terminal.styled((head, _COLOURS.get(row["label"], "yellow")), read, "\n", (text, "dim"))


@click.command()
@takes_version
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Draw it again in FILE.")
@click.option("--open", "opens", is_flag=True, help="Show it in the browser.")
@takes_json
def report(version: str, out: Path | None, opens: bool, as_json: bool) -> None:
    """Print the path of a version's report. One HTML file; --open shows it.

    For --open, the report of a version outside the data folder is written again, to a private temporary folder.
    """
    from malt.config.settings import Settings
    from malt.datasets.manifest import REPORT_FILE
    from malt.files import replace_text

    opened = open_any(version)
    path, name = opened.path / REPORT_FILE, f"{opened.name}-v{opened.number}-{REPORT_FILE}"
    if opens and out is None and not opened.is_within(Settings().data_dir):  # its page may hold foreign scripts
        out = Path(tempfile.mkdtemp(prefix="malt-"), name)
    if out is not None or not path.is_file():
        path = (out or Path(name)).absolute()
        replace_text(path, _draw_report(opened))
    if as_json:
        terminal.emit({"version": opened.reference, "report": str(path)})
    else:
        terminal.say(terminal.shorten_path(path))
    if opens:
        click.launch(path.as_uri())


def _draw_report(version: "AnyVersion") -> str:
    from malt.datasets.pages import page
    from malt.evaluation import report as evaluation_report
    from malt.evaluation.version import EvaluationVersion
    from malt.models.publishing import render_report as draw_model_report
    from malt.models.version import ModelVersion

    match version:
        case EvaluationVersion():
            return evaluation_report.redraw_report(version)
        case ModelVersion():
            return draw_model_report(version.manifest)
    return page.redraw_report(version)


@click.command()
@takes_version
@takes_json
def verify(version: str, as_json: bool) -> int:
    """Recompute every digest and invariant of a version. Lists what fails, and what is not checked.

    Exits with 1 if a check fails, with 2 if a file cannot be read and the result is therefore unknown.
    """
    opened = open_any(version)
    try:
        problems, unchecked = _check_version(opened)
    except OSError as error:
        unread = f"{error.filename or opened.path} could not be read ({error.strerror or error})"
        raise VersionError(f"{opened.reference}: {unread}, so the version cannot be verified") from error
    if as_json:
        found = {"holds": not problems, "problems": [*problems], "not_checked": [*unchecked]}
        terminal.emit({"version": opened.reference, **found})
    elif not problems:
        checked = f"{len(opened.manifest.files)} files, every digest, figure and row checked"
        terminal.say(f"{opened.reference} holds: {checked}")
        for each in unchecked:
            terminal.say(f"  not checked: {each}")
    else:
        for problem in problems:
            terminal.warn(f"{opened.reference}: {problem}")
    return 1 if problems else 0


def _check_version(version: "AnyVersion") -> "tuple[Sequence[str], Sequence[str]]":
    """Return the problems of a version, and what was not checked."""
    from malt.datasets.check.verify import list_unchecked
    from malt.datasets.check.verify import verify as check_dataset
    from malt.evaluation.publish import verify as check_evaluation
    from malt.evaluation.version import EvaluationVersion
    from malt.models.publishing import verify as check_model
    from malt.models.version import ModelVersion

    match version:
        case EvaluationVersion():
            return check_evaluation(version), ["that the systems gave these answers"]
        case ModelVersion():
            return check_model(version), ["that the base and these rows give these weights"]
    problems = check_dataset(version)
    return problems, [] if problems else list_unchecked(version)
