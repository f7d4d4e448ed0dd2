"""What the commands print: tables and trees for people, one JSON object for programs."""

import json
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree as RichTree

from malt.spec import PLAYERS
from malt.visible import visible

if TYPE_CHECKING:
    from malt.datasets.version import DatasetVersion, Listed
    from malt.plan import Plan, RolePlan
    from malt.summary import RunSummary
    from malt.trees.assessment import Shortfall
    from malt.trees.tree import FailedBranch


class SafeConsole(Console):
    """A console that no model's or provider's text can steer."""

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - rich's own options, passed on
        """Turn what is printed into rich's text; all strings come by here, in tables and trees too."""
        return super().render_str(visible(text), **options)


out = SafeConsole(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
err = SafeConsole(stderr=True, highlight=False, soft_wrap=True)

FAILURES_SHOWN = 10
QUESTIONS_SHOWN = 10
TEXT_SHOWN = 160
"""Characters of a node's text in a tree."""


def emit(value: JsonValue) -> None:
    """Print one JSON object, in any encoding."""
    print(json.dumps(value, ensure_ascii=sys.stdout.encoding.lower() != "utf-8"))


def dollars(cost: float | None) -> str:
    """Write a cost; one that is not known is not zero."""
    return "unknown" if cost is None else f"${cost:.4f}"


def table_of(*columns: str) -> Table:
    """Return a plain table whose columns after the first are numbers, unless they end in a dot."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(columns):
        table.add_column(name.rstrip("."), justify="left" if place == 0 or name.endswith(".") else "right")
    return table


def show_plan(plan: "Plan") -> None:
    """Print a quote."""
    table = table_of("role", "model.", "asked", "requests", "completions", "stored", "tokens in", "tokens out", "cost")
    for role, quoted in plan.roles.items():
        table.add_row(role.value, escape(quoted.model), quoted.mode, *quoted_figures(quoted))
    table.add_row("total", "", "", *quoted_figures(plan), style="bold")
    out.print(f"{plan.dataset}: {plan.questions} questions; still to be asked:")
    out.print(table)
    for gate, count in plan.excluded.items():
        out.print(f"{count:,} questions will give no training rows: {gate} in \\[dataset]")
    for basis in dict.fromkeys(quoted.basis for quoted in plan.roles.values()):
        of = ", ".join(role.value for role, quoted in plan.roles.items() if quoted.basis == basis)
        out.print(f"{of}: {basis}", style="dim")


def quoted_figures(quoted: "Plan | RolePlan") -> Iterator[str]:
    """Write what is quoted, with the range that it may come out in."""
    yield from map("{:,}".format, (quoted.requests, quoted.completions, quoted.stored_completions))
    for name in ("prompt_tokens", "completion_tokens"):
        low, high = getattr(quoted.low, name), getattr(quoted.high, name)
        yield f"{getattr(quoted, name):,}" + (f" ({low:,}-{high:,})" if low < high else "")
    low, high = quoted.low.cost_usd, quoted.high.cost_usd
    is_range = low is not None and high is not None and low < high
    yield dollars(quoted.cost_usd) + (f" ({dollars(low)}-{dollars(high)})" if is_range else "")


def show_summary(summary: "RunSummary") -> None:
    """Print what a run came to."""
    if summary.path is None:
        out.print(f"{summary.dataset}: nothing published")
    else:
        out.print(
            f"{summary.reference} ({'new' if summary.created else 'unchanged'}): {escape(from_here(summary.path))}"
        )
    leaves = ", ".join(f"{count} {outcome}" for outcome, count in summary.outcomes.items() if count)
    graded_by = ", ".join(f"{count} {kind}" for kind, count in summary.graded_by.items())
    out.print(f"  questions  {summary.complete} of {summary.questions} complete")
    out.print(f"  leaves     {leaves or 'none'}")
    out.print(f"  graded by  {graded_by or 'nobody'}")
    out.print(
        f"  asked      {summary.requests:,} requests, {summary.completions:,} completions; "
        f"{summary.cached_completions:,} from the store"
    )
    out.print(
        f"  used       {summary.prompt_tokens:,} prompt and {summary.completion_tokens:,} completion tokens, "
        f"cost {dollars(summary.cost_usd)}, {summary.wall_s:.1f} s"
    )
    show_rows(summary.rows)


def from_here(path: str) -> str:
    """Write a path as seen from the current folder, where it lies below it."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def show_rows(rows: dict[str, int]) -> None:
    """Print the rows of a version's files, a file a line; of the validation split only what there is."""
    for file, count in rows.items():
        if count or ".validation." not in file:
            out.print(f"  {file:<28} {count:>8,} rows")


def show_shortfall(shortfall: "Shortfall") -> int:
    """Print what a pilot could not have, and return the exit code."""
    if shortfall.stopped:
        err.print(f"error: the pilot stopped: {escape(shortfall.stopped)}")
    elif shortfall.failures:
        err.print(f"error: {len(shortfall.failures)} branches of the pilot failed")
    show_branches(shortfall.failures)
    return 3 if shortfall.stopped else int(bool(shortfall.failures))


def show_failures(summary: "RunSummary") -> None:
    """Print what is missing, and why, on stderr."""
    if summary.waits:
        err.print(escape(summary.sentence))
    elif summary.exit_code:
        err.print(f"error: {escape(summary.sentence)}")
    show_branches(summary.failures)


def show_branches(failures: "Sequence[FailedBranch]") -> None:
    """Print the first failed branches on stderr."""
    for failure in failures[:FAILURES_SHOWN]:
        where = failure.question_id + (f"/{failure.address}" if failure.address else "")
        err.print(f"  {failure.role} {escape(where)}: {escape(failure.reason)}")
    if len(failures) > FAILURES_SHOWN:
        err.print(f"  … and {len(failures) - FAILURES_SHOWN} more")


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


def show_questions(version: "DatasetVersion") -> None:
    """Print the first questions with their ids, and how many of each one's leaves are right."""
    leaves = version.trajectories.query("role == 'refiner'")
    right = leaves.assign(right=leaves.outcome == "right").groupby("question_id", sort=False).right.agg(["sum", "size"])
    for question_id, row in right.head(QUESTIONS_SHOWN).iterrows():
        asked = version.questions.query("question_id == @question_id").question.iloc[0]
        out.print(f"  {escape(str(question_id))}  {row['sum']} of {row['size']} right  {escape(one_line(asked))}")
    if len(right) > QUESTIONS_SHOWN:
        out.print(f"  … and {len(right) - QUESTIONS_SHOWN} more questions in questions.parquet")


def show_findings(version: "DatasetVersion") -> None:
    """Print a version's diagnostics, and what its gates left out."""
    from malt.datasets.findings import findings, losses

    for subject, told in findings(version.manifest.diagnostics):
        out.print(f"  {subject:<12} {escape(told)}")
    for file, candidates, kept, dropped in losses(version.manifest):
        if dropped:
            out.print(f"  {file:<15} {kept:,} of {candidates:,} candidates kept; left out: {dropped}")


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


def one_line(text: str) -> str:
    """Fold a text to the start of one line."""
    folded = " ".join(text.split())
    return folded if len(folded) <= TEXT_SHOWN else folded[: TEXT_SHOWN - 1] + "…"


def show_verdict(version: "DatasetVersion", problems: Sequence[str]) -> None:
    """Print what a check of a version found."""
    if not problems:
        files = len(version.manifest.files)
        out.print(f"{version.reference} holds: {files} files, every digest, value, label and row checked")
    for problem in problems:
        err.print(f"{version.reference}: {escape(problem)}")
