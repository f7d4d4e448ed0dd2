"""`malt doctor`: checks everything that a run needs, as cheaply as possible."""

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from malt.config.roles import ModelSpec, Role
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.engine.job import models_asked, read_job
from malt.errors import MaltError
from malt.files import make_private_folder
from malt.hosting.private_prefect import check_answers
from malt.llm.provider import call
from malt.llm.provider.errors import name_endpoint
from malt.llm.request import CompletionRequest, Message
from malt.llm.store.database import hide_password
from malt.llm.store.samples import Store
from malt.models.playing import with_weights

_QUESTION = Message("user", "Answer with one word: what is the capital of France?")
_MOST_TOKENS = 16


class Check(NamedTuple):
    """Result of one check."""

    subject: str
    works: bool
    detail: str
    """Finding, or the fault and its remedy."""


def examine(spec: RunSpec, settings: Settings) -> Iterator[Check]:
    """Check everything that a run of this spec needs, one after the other."""
    yield _try_out("questions and prompts", lambda: _check_inputs(spec))
    yield _try_out("data folder", lambda: _check_folder(settings))
    yield _try_out("store", lambda: _check_store(settings))
    for roles, model in _list_endpoints(spec):
        yield _try_out(", ".join(roles), partial(_check_endpoint, roles[0], model))
    yield _try_out("prefect", _check_prefect)


def _try_out(subject: str, trial: Callable[[], str]) -> Check:
    try:
        return Check(subject, works=True, detail=trial())
    except (MaltError, OSError) as error:
        return Check(subject, works=False, detail=str(error))


def _check_inputs(spec: RunSpec) -> str:
    job = read_job(spec)
    return f"{len(job.questions):,} questions, each with a usable reference answer"


def _check_folder(settings: Settings) -> str:
    make_private_folder(settings.datasets_dir)
    with tempfile.NamedTemporaryFile(dir=settings.datasets_dir) as file:
        file.write(b"malt")
    return f"{settings.data_dir} can be written"


def _check_store(settings: Settings) -> str:
    with Store(settings.store) as store:
        store.rows(["none"])
    return f"{hide_password(settings.store)} answers"


def _list_endpoints(spec: RunSpec) -> list[tuple[list[Role], ModelSpec]]:
    """Return the endpoints of a run, each model at each address once, with the roles that it plays."""
    found: dict[tuple[str | None, ...], tuple[list[Role], ModelSpec]] = {}
    for role, model in models_asked(with_weights(spec)).items():
        where = (model.model, model.api_base, model.api_key_env, model.api_key_block)
        found.setdefault(where, ([], model))[0].append(role)
    return [*found.values()]


def _check_endpoint(role: Role, model: ModelSpec) -> str:
    """Ask a model for a few tokens; the answer is not stored."""
    call.check(model)
    if model.api_key_block:
        return (
            f"{name_endpoint(model)} is not asked: its key is in the block {model.api_key_block!r}, read only by flows"
        )
    brief = model.model_copy(update={"max_tokens": min(_MOST_TOKENS, model.max_tokens or _MOST_TOKENS)})
    started = time.perf_counter()
    asyncio.run(_ask(CompletionRequest(role, brief, (_QUESTION,), "doctor")))
    return f"{name_endpoint(model)} answers, in {time.perf_counter() - started:.1f} s"


async def _ask(request: CompletionRequest) -> None:
    try:
        await call.send(request, 0, 1)
    finally:
        await call.close()


def _check_prefect() -> str:
    if url := os.environ.get("PREFECT_API_URL"):
        check_answers(url)
        return f"{url} answers"
    return "every run starts a server of its own; `malt up` serves the UI"
