"""What `malt datasets`, `malt show` and `malt verify` print."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree as RichTree

from malt.cli.console.terminal import dollars, err, one_line, out, show_rows, table_of
from malt.config.spec import PLAYERS

if TYPE_CHECKING:
    from malt.datasets.version.dataset_version import DatasetVersion, Listed

QUESTIONS_SHOWN = 10


def listing(listed: "Listed") -> JsonValue:
    """Return versions as JSON, and why others cannot be read."""
    return {
        "versions": [
            {
                "name": version.name,
                "version": version.number,
                "tags": [*version.tags],
                "path": str(version.path),
                "created_at": version.manifest.created_at.isoformat(),
                "content_sha256": version.manifest.content_sha256,
                "rows": {file: entry.rows for file, entry in version.manifest.files.items() if entry.rows is not None},
            }
            for version in listed.versions
        ],
        "unreadable": {reference: str(error) for reference, error in listed.unreadable.items()},
    }


def show_versions(listed: "Listed") -> None:
    """Print one line a version; on stderr for those that cannot be read."""
    for reference, error in listed.unreadable.items():
        err.print(f"error: {reference}: {escape(str(error))}")
    if listed.versions:
        out.print(table_of_versions(listed.versions))
    elif not listed.unreadable:
        out.print("no datasets yet; make one with: malt run configs/quickstart.toml")


def table_of_versions(versions: "Sequence[DatasetVersion]") -> Table:
    """Return a table with a line a version."""
    table = table_of("version", "questions", "sft", "dpo", "kto", "content.", "made.", "tags.")
    for version in versions:
        manifest = version.manifest
        rows = {file: entry.rows or 0 for file, entry in manifest.files.items()}
        kinds = [
            sum(count for file, count in rows.items() if file.startswith(f"{kind}/")) for kind in ("sft", "dpo", "kto")
        ]
        made = f"{manifest.created_at:%Y-%m-%d %H:%M}"
        figures = map("{:,}".format, (manifest.counts.complete, *kinds))
        table.add_row(version.reference, *figures, manifest.content_sha256[:12], made, ", ".join(version.tags))
    return table


def show_version(version: "DatasetVersion") -> None:
    """Print what is in a version."""
    manifest = version.manifest
    counts, spec = manifest.counts, manifest.spec
    out.print(f"[bold]{version.reference}[/bold]  {escape(str(version.path))}")
    out.print(f"content {manifest.content_sha256}, made {manifest.created_at:%Y-%m-%d %H:%M} UTC")
    out.print(f"{counts.complete} of {counts.questions} questions complete, {counts.failed_branches} failed branches")
    if manifest.growth.mode == "adaptive":
        out.print(
            f"grown adaptively: {manifest.growth.nodes:,} of {manifest.growth.nodes_in_full:,} nodes of full trees; "
            f"a value is {manifest.growth.values}"
        )
    table = table_of("role", "model.", "samples", "nodes", "right", "wrong", "no label", "tokens out", "cost")
    for role in PLAYERS:
        labels, declared = counts.labels[role], spec.roles[role]
        tokens, cost = manifest.tokens[role].completion_tokens, manifest.cost[role].cost_usd
        figures = (declared.samples, counts.nodes[role], labels.right, labels.wrong, labels.none)
        table.add_row(
            role.value,
            escape(declared.model),
            *map(str, figures),
            "unknown" if tokens is None else f"{tokens:,}",
            dollars(cost),
        )
    out.print(table)
    leaves = ", ".join(f"{count} {outcome}" for outcome, count in counts.outcomes.items() if count)
    out.print(f"leaves: {leaves}; graded by {', '.join(spec.evaluator.kind)}")
    show_ledger(version)
    show_findings(version)
    show_questions(version)
    show_rows({file: entry.rows for file, entry in manifest.files.items() if entry.rows is not None})


def show_ledger(version: "DatasetVersion") -> None:
    """Print what each run gave to a version, and what that cost."""
    table = table_of("run", "role.", "model.", "completions", "tokens in", "tokens out", "cost")
    for entry in version.manifest.ledger:
        tokens = entry.tokens.prompt_tokens, entry.tokens.completion_tokens
        table.add_row(
            entry.run or "unknown",
            entry.role.value,
            escape(entry.model),
            f"{entry.tokens.completions:,}",
            *("unknown" if count is None else f"{count:,}" for count in tokens),
            dollars(entry.cost.cost_usd),
        )
    out.print(table)


def show_findings(version: "DatasetVersion") -> None:
    """Print a version's diagnostics, and what its gates left out."""
    from malt.datasets.stats.findings import findings, losses

    for subject, told in findings(version.manifest.diagnostics):
        out.print(f"  {subject:<12} {escape(told)}")
    for file, candidates, kept, dropped in losses(version.manifest):
        if dropped:
            out.print(f"  {file:<15} {kept:,} of {candidates:,} candidates kept; left out: {dropped}")


def show_questions(version: "DatasetVersion") -> None:
    """Print the first questions with their ids, and how many of each one's leaves are right."""
    leaves = version.trajectories.query("role == 'refiner'")
    right = leaves.assign(right=leaves.outcome == "right").groupby("question_id", sort=False).right.agg(["sum", "size"])
    for question_id, row in right.head(QUESTIONS_SHOWN).iterrows():
        asked = version.questions.query("question_id == @question_id").question.iloc[0]
        out.print(f"  {escape(str(question_id))}  {row['sum']} of {row['size']} right  {escape(one_line(asked))}")
    if len(right) > QUESTIONS_SHOWN:
        out.print(f"  … and {len(right) - QUESTIONS_SHOWN} more questions in questions.parquet")


def show_tree(version: "DatasetVersion", question_id: str) -> None:
    """Print one question's tree: every node's value, label and text, every leaf's grade."""
    rows = version.tree_rows(question_id)
    asked = version.questions.query("question_id == @question_id").to_dict("records")[0]
    root = RichTree(f"[bold]{escape(one_line(asked['question']))}[/bold]\nreference: {escape(asked['ground_truth'])}")
    branches = {"": root}
    for row in rows.astype(object).where(rows.notna(), None).to_dict("records"):
        parent = branches[row["node_id"].rpartition(".")[0]]
        branches[row["node_id"]] = parent.add(node_line(row))
    out.print(root)


def node_line(row: Mapping[Hashable, Any]) -> str:
    """Write one node in two lines."""
    worth = "no value" if row["label"] is None else f"{row['value']:.2f}"
    colour = {True: "green", False: "red"}.get(row["label"], "yellow")
    grade = f" {row['outcome']}" if row["outcome"] else ""
    read = f", read {escape(repr(row['answer']))}" if row["answer"] else ""
    head = f"[{colour}]{row['role']} {row['node_id']}  {worth}{grade}[/{colour}]{read}"
    return f"{head}\n[dim]{escape(one_line(row['text']))}[/dim]"


def show_verdict(version: "DatasetVersion", problems: Sequence[str]) -> None:
    """Print what a check of a version found."""
    if not problems:
        files = len(version.manifest.files)
        out.print(f"{version.reference} holds: {files} files, every digest, value, label and row checked")
    for problem in problems:
        err.print(f"{version.reference}: {escape(problem)}")
