"""`malt doctor`: whether what a run needs works, each thing tried once and as cheaply as it can be."""

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from malt.config.settings import Settings
from malt.config.spec import ModelSpec, Role, RunSpec
from malt.engine.job import models_asked, read_job
from malt.errors import MaltError
from malt.hosting.private_prefect import check_answers
from malt.llm.provider import call
from malt.llm.request import CompletionRequest, Message
from malt.llm.store.database import hide_password
from malt.llm.store.samples import Store

QUESTION = Message("user", "Answer with one word: what is the capital of France?")
MOST_TOKENS = 16


class Check(NamedTuple):
    """One thing that was tried."""

    subject: str
    works: bool
    told: str
    """What it amounts to, or what is wrong and what to do."""


def examine(spec: RunSpec, settings: Settings) -> Iterator[Check]:
    """Try all that a run of this spec needs, one after the other."""
    yield tried("questions and prompts", lambda: told_of_inputs(spec))
    yield tried("data folder", lambda: told_of_folder(settings))
    yield tried("store", lambda: told_of_store(settings))
    for subject, role, model in endpoints(spec):
        yield tried(subject, lambda role=role, model=model: told_of_endpoint(role, model))  # type: ignore[misc]
    yield tried("prefect", told_of_prefect)


def tried(subject: str, trial: Callable[[], str]) -> Check:
    """Try one thing; what is raised there is what it amounts to."""
    try:
        return Check(subject, works=True, told=trial())
    except (MaltError, OSError) as error:
        return Check(subject, works=False, told=str(error))


def told_of_inputs(spec: RunSpec) -> str:
    """Read questions and prompts."""
    job = read_job(spec)
    return f"{len(job.questions):,} questions, every reference answer can be graded against"


def told_of_folder(settings: Settings) -> str:
    """Write into the folder of the datasets."""
    settings.datasets_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=settings.datasets_dir) as file:
        file.write(b"malt")
    return f"{settings.data_dir} can be written"


def told_of_store(settings: Settings) -> str:
    """Open the store, and ask it something."""
    with Store(settings.store) as store:
        store.rows(["none"])
    return f"{hide_password(settings.store)} answers"


def endpoints(spec: RunSpec) -> Iterator[tuple[str, Role, ModelSpec]]:
    """Return what a run would ask, each model at each address once, with the first role that it plays."""
    seen = set()
    for role, model in models_asked(spec).items():
        where = (model.model, model.api_base, model.api_key_env, model.api_key_block)
        if where not in seen:
            seen.add(where)
            yield f"{model.model}{f' at {model.api_base}' if model.api_base else ''}", role, model


def told_of_endpoint(role: Role, model: ModelSpec) -> str:
    """Ask a model for a few tokens; nothing of it is stored."""
    call.check(model)
    if model.api_key_block:
        return f"not asked: its key is in the block {model.api_key_block!r}, which the flows alone read"
    brief = model.model_copy(update={"max_tokens": min(MOST_TOKENS, model.max_tokens or MOST_TOKENS)})
    started = time.perf_counter()
    asyncio.run(ask(CompletionRequest(role, brief, (QUESTION,), "doctor")))
    return f"answers, in {time.perf_counter() - started:.1f} s"


async def ask(request: CompletionRequest) -> None:
    """Send one request, and close the connection."""
    try:
        await call.send(request, 0, 1)
    finally:
        await call.close()


def told_of_prefect() -> str:
    """Ask the server at `PREFECT_API_URL` how it is."""
    if url := os.environ.get("PREFECT_API_URL"):
        check_answers(url)
        return f"{url} answers"
    return "every run starts a server of its own; `malt up` serves the UI"
