"""Commands that grow and assemble: `plan`, `run`, `rerun`, `assemble`; and `batches`, pending at providers."""

import asyncio
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from malt.cli import evaluating, summaries, terminal
from malt.cli.options import F, WholeNumber, shows_files, takes_config, takes_json
from malt.errors import ConfigError, PrefectLost
from malt.processes import paused_gc

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from malt.config.roles import Role
    from malt.config.spec import RunSpec
    from malt.engine.build import RunSummary
    from malt.engine.job import Job
    from malt.engine.plan import Plan
    from malt.evaluation.job import EvaluationPlan
    from malt.hosting.private_prefect import NamedServer, PrefectServer
    from malt.llm.store.batches import Batch

    Server = NamedServer | PrefectServer


def _split_names(_context: click.Context, _option: click.Parameter, value: str | None) -> "Sequence[str]":
    return [name.strip() for name in value.split(",") if name.strip()] if value else []


def _split_roles(context: click.Context, option: click.Parameter, value: str | None) -> "Sequence[Role]":
    from malt.config.roles import Role

    names = _split_names(context, option, value)
    for unknown in (name for name in names if name not in list(Role)):
        raise click.BadParameter(f"{unknown!r} is no role; roles are {', '.join(Role)}")
    return [Role(name) for name in names]


def _takes_refresh(command: F) -> F:
    """Add the options that choose which answers to ask for again."""
    for add in (
        click.option(
            "--questions", callback=_split_names, metavar="ID,…", help="With --refresh: only for these questions."
        ),
        click.option("--refresh", callback=_split_roles, metavar="ROLE,…", help="Roles to ask again; evaluator too."),
    ):
        command = add(command)
    return command


def _check_refresh(refresh: "Sequence[Role]", questions: "Sequence[str]") -> None:
    if questions and not refresh:
        raise ConfigError("--questions needs --refresh; to ask for missing answers of some questions: malt rerun NAME")


@click.command()
@takes_config
@click.option("--pilot", type=WholeNumber(1), metavar="K", help="First grow K questions, and quote from them.")
@_takes_refresh
@takes_json
def plan(
    config: Path,
    override: tuple[str, ...],
    limit: int | None,
    pilot: int | None,
    refresh: "Sequence[Role]",
    questions: "Sequence[str]",
    as_json: bool,
) -> int:
    """Quote a run: requests, completions, tokens and cost. Counts stored answers; only a pilot calls a model."""
    from malt.engine.job import check_models
    from malt.engine.plan import plan as quote
    from malt.engine.runner import choose_questions, run_pilot
    from malt.llm.store.samples import Store

    _check_refresh(refresh, questions)
    job = _read_job(config, override, limit)
    job = job.only(choose_questions(job.questions, questions))
    shortfall = None if pilot is None else asyncio.run(run_pilot(job, pilot))
    with Store(job.settings.store) as store:
        quoted = quote(job, store, refresh)
        evaluation = None if refresh else evaluating.quote_evaluation(job.spec, store)
    terminal.emit(_plan_json(quoted, evaluation)) if as_json else _show_plans(quoted, evaluation)
    try:
        check_models(job.spec)
    except ConfigError as error:
        terminal.warn(f"before it can run: {error}")
    return 0 if shortfall is None else summaries.show_shortfall(shortfall)


def _plan_json(quoted: "Plan", evaluation: "EvaluationPlan | None") -> dict[str, Any]:
    written = quoted.model_dump(mode="json")
    return written if evaluation is None else {**written, "evaluation": evaluation.model_dump(mode="json")}


def _show_plans(quoted: "Plan", evaluation: "EvaluationPlan | None") -> None:
    summaries.show_plan(quoted)
    if evaluation is not None:
        evaluating.show_plan(evaluation)


@click.command()
@takes_config
@click.option("--no-wait", is_flag=True, help="Batch mode: submit, collect finished batches, and exit (code 4).")
@_takes_refresh
@shows_files
@takes_json
def run(
    config: Path,
    override: tuple[str, ...],
    limit: int | None,
    no_wait: bool,
    refresh: "Sequence[Role]",
    questions: "Sequence[str]",
    files: bool,
    as_json: bool,
) -> int:
    """Grow, grade and publish. Asks only for answers that the store lacks."""
    _check_refresh(refresh, questions)
    if no_wait:
        override = (*override, "run.wait=false")
    if refresh:
        again = _ask_again(_read_job(config, override, limit), questions, refresh, refresh=True)
        return _finish(again, files=files, as_json=as_json)
    job, server = _begin(config, override, limit)
    with paused_gc():
        from malt.cli.progress import progress
        from malt.engine.job import check_models
        from malt.engine.runner import run_job

    check_models(job.spec)
    with progress(job.spec, len(job.questions)):
        summary = _run_flow("generate", job, server) if server else run_here(run_job(job))
    return _finish(summary, files=files, as_json=as_json)


@click.command()
@click.argument("name", metavar="NAME")
@click.option("--questions", callback=_split_names, metavar="ID,…", help="Ask only for these questions.")
@click.option("--roles", callback=_split_roles, metavar="ROLE,…", help="Ask only these roles.")
@click.option("--refresh", is_flag=True, help="Set stored answers aside and ask again.")
@click.option("--config", type=click.Path(path_type=Path), help="Config of the dataset; else its newest version's.")
@shows_files
@takes_json
def rerun(
    name: str,
    questions: "Sequence[str]",
    roles: "Sequence[Role]",
    refresh: bool,
    config: Path | None,
    files: bool,
    as_json: bool,
) -> int:
    """Ask again for part of a dataset, and publish. Only missing answers, or with --refresh all of that part."""
    from malt.engine.job import read_job
    from malt.engine.runner import read_declared

    again = _ask_again(read_job(read_declared(name, config)), questions, roles, refresh=refresh)
    return _finish(again, files=files, as_json=as_json)


def _ask_again(job: "Job", ids: "Sequence[str]", roles: "Sequence[Role]", *, refresh: bool) -> "RunSummary":
    from malt.cli.progress import progress
    from malt.engine.runner import choose_questions, rerun_job

    chosen = choose_questions(job.questions, ids)
    with progress(job.spec, len(chosen)):
        return run_here(rerun_job(job, chosen, roles, refresh=refresh))


@click.command()
@takes_config
@shows_files
@takes_json
def assemble(config: Path, override: tuple[str, ...], limit: int | None, files: bool, as_json: bool) -> int:
    """Make a dataset version from what the store holds. Generator, verifier and refiner are not asked."""
    from malt.engine.runner import assemble_job

    job, server = _begin(config, override, limit)
    summary = _run_flow("assemble", job, server) if server else run_here(assemble_job(job))
    return _finish(summary, files=files, as_json=as_json)


def _read_job(config: Path, override: tuple[str, ...], limit: int | None) -> "Job":
    with paused_gc():
        from malt.config.loader import load_spec
        from malt.engine.job import read_job
    return read_job(load_spec(config, override, limit))


def _begin(config: Path, override: tuple[str, ...], limit: int | None) -> "tuple[Job, Server | None]":
    """Read a config and its inputs while a Prefect server starts; the server is None if flows cannot be run."""
    from malt.config.loader import load_spec
    from malt.config.settings import Settings
    from malt.hosting.private_prefect import connect

    spec = load_spec(config, override, limit)
    if missing := find_missing():
        _warn_of_no_flow(spec.run.task_runner, missing)
    server = None if missing else connect(Settings().data_dir)
    with paused_gc():  # after the server's start: this import takes half a second
        from malt.engine.job import read_job
    return read_job(spec), server


def _warn_of_no_flow(task_runner: str, missing: str) -> None:
    """Warn that Prefect is not available. Raises `ConfigError` for a task runner that needs it."""
    if task_runner != "threads":
        raise ConfigError(f"run.task_runner = {task_runner!r} needs {missing}; leave it out")
    terminal.warn(f"this run is not recorded in Prefect: that needs {missing}")


def find_missing() -> str:
    """Return what is missing to run a flow; empty if nothing is."""
    if find_spec("prefect") is None:
        return "Prefect (pip install 'malt-trees[prefect]') and a checkout of the project"
    if find_spec("flows") is None or find_spec("flows.generate") is None:
        return "the project's flows/ and tasks/: run it from a checkout"
    return ""


def run_here(work: "Coroutine[Any, Any, RunSummary]") -> "RunSummary":
    """Run a job in this process, without Prefect."""
    from malt.engine import signals
    from malt.llm.provider import call

    with paused_gc():
        call.warm_up()
    return signals.run(work)


def _run_flow(name: str, job: "Job", server: "Server") -> "RunSummary":
    """Run a flow in this process and return its summary. Raises the flow's own error if it has no summary."""
    from malt.engine.job import handing_over

    with handing_over(job):
        result: RunSummary = flow_result(name, job.spec, server)
    return result


def flow_result(name: str, spec: "RunSpec", server: "Server") -> Any:  # noqa: ANN401 - each flow has its own
    """Run a flow in this process and return its result. Raises the flow's own error."""
    from malt.engine import signals
    from malt.llm.provider import call

    with paused_gc():
        flow = getattr(import_module(f"flows.{name}"), name)
        if name == "generate":
            call.warm_up()
    server.wait_until_ready()
    result = signals.run(_await_flow(flow, spec, server))
    if isinstance(result, BaseException):
        raise result
    return result


async def _await_flow(flow: Any, spec: "RunSpec", server: "Server") -> Any:  # noqa: ANN401 - Prefect is not imported here
    """Run a flow to its end and return its result in any state: a flow with failed branches has a summary too."""
    from httpx import HTTPError

    try:
        state = await flow(spec, return_state=True)
        result = await state.aresult(raise_on_failure=False)
    except HTTPError as error:
        result = error
    return PrefectLost(describe_loss(server, result)) if isinstance(result, HTTPError) else result


def describe_loss(server: "Server", error: Exception) -> str:
    """Return the message that Prefect's server was lost while a flow ran."""
    lost = f"Prefect's server at {server.api_url} no longer answers this run: {error}"
    return f"{' '.join(lost.split())}. Replies in the store are kept: {server.when_lost}"


def _finish(summary: "RunSummary", *, files: bool, as_json: bool) -> int:
    """Print a run's summary, and its failures on stderr; return the exit code."""
    terminal.show_report(summary, partial(summaries.show_summary, files=files), as_json=as_json)
    summaries.show_failures(summary)
    return summary.exit_code


@click.command()
@click.argument("name", required=False)
@click.option("--forget", multiple=True, metavar="BATCH", help="Forget it: its items are asked and paid for again.")
@takes_json
def batches(name: str | None, forget: tuple[str, ...], as_json: bool) -> None:
    """List the batches under way. Those of NAME, or all; --forget drops one that can no longer be collected."""
    from malt.config.settings import Settings
    from malt.llm.store.batches import BatchStore
    from malt.llm.store.samples import Store

    with Store(Settings().store) as store:
        book = BatchStore(store)
        listed = book.list_open(name)
        samples = book.count_samples()
        forgotten = [_find_batch(listed, name_or_mark) for name_or_mark in forget]
        for batch in forgotten:
            book.forget(batch.mark)
    rows = [_describe_batch(batch, samples.get(batch.mark, 0)) for batch in forgotten or listed]
    if as_json:
        terminal.emit({"forgotten": bool(forgotten), "batches": rows})
    else:
        _show_batches(rows, forgotten=bool(forgotten))


def _find_batch(listed: "Sequence[Batch]", name: str) -> "Batch":
    for batch in listed:
        if name in (batch.batch_id, batch.mark):
            return batch
    raise ConfigError(f"--forget {name}: no such batch is under way; `malt batches` lists those that are")


def _describe_batch(batch: "Batch", samples: int) -> dict[str, Any]:
    """Describe a batch; key `batch` is the provider's id, else our own: `malt_mark` in its metadata there."""
    return {
        "batch": batch.label,
        "dataset": batch.dataset,
        "model": batch.model,
        "api_base": batch.api_base,
        "api_key_env": batch.api_key_env,
        "since": datetime.fromtimestamp(batch.planned_at, UTC).isoformat(timespec="seconds"),
        "samples": samples,
        "most_usd": batch.usd,
        "most_tokens": batch.tokens,
    }


def _show_batches(rows: "Sequence[dict[str, Any]]", *, forgotten: bool) -> None:
    if not rows:
        terminal.say("no batch is under way")
    for row in rows:
        place = f"{row['model']} at {row['api_base']}" if row["api_base"] else row["model"]
        cost = f", ${row['most_usd']:.4f}" if row["most_usd"] else ""
        most = f"since {row['since']}, at most {row['most_tokens']:,} tokens{cost}"
        terminal.say(f"{row['batch']}  {row['dataset']}, {place}, {row['samples']:,} samples, {most}")
    if forgotten:
        terminal.say("forgotten: its items are asked for again. The provider still bills this batch; cancel it there")
