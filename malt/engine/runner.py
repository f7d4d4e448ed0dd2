"""Complete runs in this process, without Prefect: fill the store, build a version, summarise; and reruns.

A rerun loses no data: an answer that was set aside keeps its row. Samples below it are asked for again only if their
prompt has changed; otherwise they are found in the store.
"""

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from malt.config.loader import load_spec
from malt.config.roles import Role
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.datasets.version.dataset_version import open_version
from malt.engine.build import Built, RunSummary, build, summarise
from malt.engine.fill import Ask, fill
from malt.engine.job import Job, check_models
from malt.engine.run import Filled, Run, new_run_name
from malt.errors import ConfigError, QuestionError
from malt.llm.budget import Tally, Usage
from malt.llm.client.completers import EVERY_ROLE, RecordingCompleter, make_store_completer, with_fallbacks
from malt.llm.client.run_lock import hold_run_lock
from malt.llm.store.samples import Store
from malt.questions.question import Question
from malt.text import find_close
from malt.trees.pipeline import NOTHING_MISSING, Shortfall, ask_all, asks_judge
from malt.trees.replay import windows


async def run_job(job: Job) -> RunSummary:
    """Ask for what is missing, then publish the complete trees. Waits while another run holds the dataset's lock."""
    return await rerun_job(job, job.questions, EVERY_ROLE, refresh=False)


async def rerun_job(job: Job, questions: Sequence[Question], roles: Collection[Role], *, refresh: bool) -> RunSummary:
    """Ask some roles again about some questions, then publish; empty `roles` means all.

    With `refresh` the stored answers of these roles are set aside first, and later roles are asked again where their
    prompts change; without it only missing samples are asked for.
    """
    started, run = time.time(), Run(roles=EVERY_ROLE if refresh or not roles else frozenset(roles))
    check_models(job.spec)
    async with hold_run_lock(job.spec.name, job.settings, f"run {run.name}"):
        if refresh:
            await asyncio.to_thread(set_aside, job.only(questions), roles or EVERY_ROLE, started)
        filled = await fill(job.only(questions), run)
        built = await asyncio.to_thread(build, job) if is_publishable(job.spec, filled.shortfall) else None
    return summarise(job, filled, built, time.time() - started)


async def assemble_job(job: Job) -> RunSummary:
    """Publish the complete trees of the store; only the judge is asked, for missing grades."""
    run, started = Run(), time.monotonic()
    async with hold_run_lock(job.spec.name, job.settings, f"run {run.name}"):
        judged = await fill_grades(job, run)
        built = await asyncio.to_thread(build, job)
    return summarise(job, assembled(job, judged, built), built, time.monotonic() - started)


async def fill_grades(job: Job, run: Run, ask: Ask | None = None) -> Filled:
    """Ask the judge, if there is one, for missing grades; no other role is asked."""
    if not asks_judge(job.spec):
        return Filled(NOTHING_MISSING, Tally())
    return await fill(job, replace(run, roles=frozenset({Role.EVALUATOR})), ask)


def assembled(job: Job, judged: Filled, built: Built) -> Filled:
    """Return the usage of an assembly: the judge's, or without a judge the stored samples that the version uses."""
    if asks_judge(job.spec):
        return judged
    nodes = {} if built.version is None else built.version.manifest.counts.nodes
    return judged._replace(tally=Tally({role: Usage(cached_completions=nodes.get(role, 0)) for role in Role}))


def is_publishable(spec: RunSpec, shortfall: Shortfall) -> bool:
    """Whether the complete trees of the store are published as a version after this run."""
    return shortfall == NOTHING_MISSING or (spec.run.on_incomplete == "publish" and shortfall.waits is None)


async def run_pilot(job: Job, questions: int) -> Shortfall:
    """Grow trees for `questions` questions, spread evenly over all; their samples stay in the store."""
    chosen, name = spread_evenly(job.questions, questions), f"{new_run_name()}-pilot"
    check_models(job.spec)
    async with hold_run_lock(job.spec.name, job.settings, f"pilot {name}"):
        return (await fill(job.only(chosen), Run(name))).shortfall


def spread_evenly(questions: Sequence[Question], count: int) -> list[Question]:
    """Pick questions at even distances, since a file is often sorted by difficulty."""
    taken = min(count, len(questions))
    return [questions[index * len(questions) // taken] for index in range(taken)]


def read_declared(name: str, config: Path | None) -> RunSpec:
    """Return a dataset's spec from a config file, else from its version. Raises `ConfigError` or `VersionError`."""
    if config is None:
        version = open_version(name, (datasets := Settings().datasets_dir))
        version.refuse_foreign(datasets, "models, addresses, keys and files", "declare the dataset with --config")
        return version.spec
    spec = load_spec(config)
    if spec.name != name:
        raise ConfigError(f"{config}: declares dataset {spec.name!r}, not {name!r}; run the command for {spec.name!r}")
    return spec


def choose_questions(questions: Sequence[Question], ids: Sequence[str]) -> Sequence[Question]:
    """Return the questions with these ids, or all without ids, in order. Raises `QuestionError` for an unknown id."""
    known = [question.question_id for question in questions]
    for unknown in (each for each in ids if each not in known):
        close = find_close(unknown, known)
        hint = f"did you mean {close!r}? " if close else ""
        raise QuestionError(f"no question {unknown!r} in the dataset; {hint}questions.parquet lists them")
    return [question for question in questions if question.question_id in ids] if ids else questions


def set_aside(job: Job, roles: Collection[Role], before: float) -> int:
    """Set aside these roles' answers in the job's trees from before a time (s since the epoch); return their number."""
    with Store(job.settings.store) as store:
        keys = {key for window in windows(job.questions) for key in _keys_of(window, job, roles, store)}
        return store.set_aside(sorted(keys), before)


def _keys_of(questions: Sequence[Question], job: Job, roles: Collection[Role], store: Store) -> list[str]:
    """Return the keys that the stored trees of these questions request from these roles, fallbacks included."""
    recorder = RecordingCompleter(make_store_completer(store, [question.question_id for question in questions]))
    asyncio.run(ask_all(questions, job.inputs(recorder)))
    requests = [request for request in recorder.requests if request.role in roles]
    return [key for request in requests for each in with_fallbacks(request) for key in each.keys]
