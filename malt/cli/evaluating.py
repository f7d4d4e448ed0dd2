"""Commands that evaluate: `evaluate`, `evaluations`; and the output of other commands about evaluations."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from malt.cli import summaries, terminal
from malt.cli.options import takes_config, takes_json
from malt.text import count_noun

if TYPE_CHECKING:
    from malt.config.evaluate import Measure
    from malt.config.spec import RunSpec
    from malt.evaluation.compare import EvaluationDiff
    from malt.evaluation.evaluate import Evaluated
    from malt.evaluation.job import EvaluationPlan
    from malt.evaluation.summary import Cell, Summary
    from malt.evaluation.version import EvaluationVersion
    from malt.llm.store.samples import Store


@click.command()
@takes_config
@click.option("--race", is_flag=True, help="Drop systems early once they cannot win.")
@takes_json
def evaluate(config: Path, override: tuple[str, ...], limit: int | None, race: bool, as_json: bool) -> int:
    """Compare systems on held-out questions, paired by question. Asks only for answers that the store lacks."""
    from malt.config.loader import load_spec
    from malt.config.settings import Settings
    from malt.engine import signals
    from malt.evaluation.evaluate import evaluate_alone
    from malt.evaluation.job import read_evaluation

    overrides = [*override, *(["evaluate.race=true"] if race else [])]
    done = signals.run(evaluate_alone(read_evaluation(load_spec(config, overrides), limit), Settings()))
    terminal.emit(done.as_json()) if as_json else _show_evaluated(done)
    _warn_of_missing(done)
    summaries.show_branches(done.failures)
    return done.exit_code


def _warn_of_missing(done: "Evaluated") -> None:
    if done.stopped is not None:
        terminal.warn(f"error: stopped: {done.stopped}")
    elif done.failures:
        terminal.warn(f"error: {len(done.failures)} failed branches; run again to ask only for what is missing")


def _show_evaluated(done: "Evaluated") -> None:
    if done.version is not None:
        _show_evaluation(done.version)
    used = f"{done.requests:,} requests, {done.completions:,} completions, {done.cached_completions:,} from the store"
    terminal.say(f"{used}; this run cost {terminal.format_dollars(done.cost_usd)} and took {done.wall_s:.1f} s")


@click.command()
@click.argument("name", required=False)
@takes_json
def evaluations(name: str | None, as_json: bool) -> int:
    """List evaluations: questions, systems, digest, date."""
    from malt.evaluation.version import list_evaluations

    listed = list_evaluations(name)
    if as_json:
        return terminal.emit_listing(listed, _describe)
    none_yet = "no evaluations yet; make one with: malt evaluate CONFIG"
    return terminal.show_listing(listed, ("questions", "systems."), _list_cells, none_yet)


def _describe(version: "EvaluationVersion") -> "dict[str, object]":
    return {"questions": version.summary.questions, "systems": [*version.summary.systems]}


def _list_cells(version: "EvaluationVersion") -> tuple[str, str]:
    return f"{version.summary.questions:,}", ", ".join(version.summary.systems)


def _show_evaluation(version: "EvaluationVersion") -> None:
    summary, manifest = version.summary, version.manifest
    terminal.show_head(version)
    graders = ", ".join(manifest.grader)
    counts = f"{count_noun(summary.questions, 'question')}, {count_noun(summary.chains, 'chain')}"
    terminal.say(f"{counts}; graded by {graders}")
    _show_accuracies(summary)
    _show_differences(summary)
    _show_tournament(summary)
    for name, system in summary.systems.items():
        terminal.say(f"  {name}: {system.refining.sentence}")


def _show_accuracies(summary: "Summary") -> None:
    """Print each system's accuracy, in percent with 95 % intervals."""
    from malt.datasets.stats.figures import format_count

    heads = (_write_head(measure, summary.chains) for measure in summary.measures)
    table = terminal.new_table("system", *heads, "tokens", "cost")
    for name, system in summary.systems.items():
        cells = (_format_cell(getattr(system, measure)) for measure in summary.measures)
        table.add_row(name, *cells, format_count(system.tokens), terminal.format_dollars(system.cost_usd))
    terminal.say(table)
    show_legend(summary.chains)
    for name, system in summary.systems.items():
        for title, cell in system.beside():
            terminal.say(f"  {name}, {title}: {_format_cell(cell)}")


def _write_head(measure: "Measure", chains: int) -> str:
    """Abbreviate a way of answering, as the legend does; one chain has no vote."""
    way = measure.removesuffix("_mv").upper()
    return f"{way}+MV@{chains}" if measure.endswith("_mv") and chains > 1 else way


def show_legend(chains: int) -> None:
    """Print the meaning of the accuracy columns' heads."""
    vote = f"; +MV@{chains}: majority vote of {chains} chains" if chains > 1 else ""
    terminal.say(f"SA: single agent, the generator; MA: multi-agent, the whole pipeline{vote}", style="dim")


def _show_differences(summary: "Summary") -> None:
    if not summary.differences:
        return
    from malt.evaluation.card import points

    points_of = f"{_write_head(summary.measure, summary.chains)}, points (95 %)"
    table = terminal.new_table(f"less {summary.baseline}", points_of, "p", "p (Holm)")
    for name, found in summary.differences.items():
        gain = points(found.difference, found.low, found.high)
        table.add_row(name, gain, f"{found.p:.3g}", f"{found.p_holm:.3g}")
    terminal.say(table)


def _show_tournament(summary: "Summary") -> None:
    """Print each model's worth in each role, the systems that a race dropped, and the best system per token budget."""
    from malt.evaluation.card import points

    for role, worths in summary.tournament.items():
        table = terminal.new_table(role, "mean, %", "worth, points (95 %)")
        for model, worth in worths.items():
            table.add_row(model, f"{100 * worth.accuracy:.1f}", points(worth.worth, worth.low, worth.high))
        terminal.say(table)
    for name, questions in summary.dropped.items():
        terminal.say(f"  {name}: dropped after {questions:,} questions; at most 5 % of races drop the best")
    if summary.frontier:
        terminal.say("the best system and way to answer, by completion tokens a question:")
    for choice in summary.frontier:
        accuracy = 100 * (choice.cell.accuracy or 0.0)
        terminal.say(f"  from {choice.tokens:,.0f} tokens a question: {choice.system}, {choice.way}: {accuracy:.1f} %")


def _format_cell(cell: "Cell") -> str:
    if cell.accuracy is None or cell.low is None or cell.high is None:
        return "n/a"
    return f"{100 * cell.accuracy:.1f} ({100 * cell.low:.0f}-{100 * cell.high:.0f})"


def quote_evaluation(spec: "RunSpec", store: "Store") -> "EvaluationPlan | None":
    from malt.evaluation.job import plan_evaluation, read_evaluation

    return None if spec.evaluate is None else plan_evaluation(read_evaluation(spec), store)


def show_plan(plan: "EvaluationPlan") -> None:
    """Print an evaluation's quote, and the smallest difference that so many questions can show."""
    table = terminal.new_table("system", "role.", "model.", *summaries.QUOTED)
    for system, added in plan.systems.items():
        for role, quoted in added.roles.items():
            table.add_row(system, role.value, terminal.shorten_name(quoted.model), *summaries.quoted_figures(quoted))
    table.add_row("total", "", "", *summaries.quoted_figures(plan), style="bold")
    terminal.say(f"evaluation: {plan.questions:,} questions; what each system adds to those before it:")
    terminal.say(table)
    summaries.show_range(plan)
    shown = "; ".join(_list_differences(plan))
    terminal.say(f"smallest difference that {plan.questions:,} questions show with 80 % power: {shown}")
    terminal.say(f"4 points where 20 % of votes differ need {plan.questions_for_4_points:,} questions", style="dim")


def _list_differences(plan: "EvaluationPlan") -> Iterator[str]:
    for parted, smallest in plan.smallest_difference.items():
        points = "none" if smallest is None else f"{100 * smallest:.1f} points"
        yield f"{points} where {parted} of votes differ"


def show(reference: str, question_id: str | None, *, as_json: bool) -> None:
    """Print an evaluation, or its systems' answers to one question."""
    from malt.evaluation.version import open_evaluation

    version = open_evaluation(reference)
    if question_id is not None:
        _show_question(version, question_id, as_json=as_json)
    elif as_json:
        manifest = version.manifest.model_dump(mode="json")
        terminal.emit({**manifest, "summary": version.summary.model_dump(mode="json")})
    else:
        _show_evaluation(version)


def _show_question(version: "EvaluationVersion", question_id: str, *, as_json: bool) -> None:
    rows = version.question_answers(question_id)
    if as_json:
        terminal.emit({"version": version.reference, "question_id": question_id, "answers": rows})
        return
    terminal.say(terminal.styled((terminal.one_line(rows[0]["question"]), "bold")))
    terminal.say(f"reference: {rows[0]['ground_truth']}")
    for row in rows:
        _show_chain(row)


def _show_chain(row: dict[str, Any]) -> None:
    from malt.config.roles import PLAYERS

    seed = "" if row["seed"] is None else f", seed {row['seed']}"
    kind = "" if row["kind"] == "chain" else f", {row['kind']}"
    terminal.say(terminal.styled((f"{row['system']}, chain {row['chain']}{seed}{kind}: {row['outcome']}", "bold")))
    for role in PLAYERS:
        if row[role] is not None:
            grade = f" ({row['generator_outcome']})" if role is PLAYERS[0] else ""
            terminal.say(terminal.styled(f"  {role}{grade}: ", (terminal.one_line(row[role]), "dim")))


def diff(old: str, new: str, *, as_json: bool) -> None:
    from malt.evaluation.compare import compare
    from malt.evaluation.version import open_evaluation

    terminal.show_report(compare(open_evaluation(old), open_evaluation(new)), _show_diff, as_json=as_json)


def _show_diff(found: "EvaluationDiff") -> None:
    terminal.say(f"{found.old} -> {found.new}", style="bold")
    for name, change in found.inputs.items():
        terminal.say(f"  {name}: {change.old!r} -> {change.new!r}")
    if found.same_content:
        terminal.say("same content: every answer and grade is the same")
    for system, moved in found.accuracies.items():
        shown = ", ".join(f"{measure} {_percent(each.old)} -> {_percent(each.new)}" for measure, each in moved.items())
        terminal.say(f"  {system}: {shown}")
    for system, turned in found.turned.items():
        if turned.better or turned.worse:
            terminal.say(f"  {system}: {len(turned.better)} questions turned better, {len(turned.worse)} worse")


def _percent(share: object) -> str:
    return f"{100 * share:.1f} %" if isinstance(share, float) else "n/a"
