"""Asking again: which dataset and questions a rerun is about, and answers set aside so that they are asked for anew.

Nothing is lost: an answer that was set aside keeps its row. What grew below it is asked for anew where its prompt is
another one, and found in the store where it is not.
"""

import asyncio
import difflib
from collections.abc import Collection, Sequence
from pathlib import Path

from malt.config.loader import load_spec
from malt.config.roles import Role
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.datasets.version.dataset_version import open_version
from malt.engine.job import Job
from malt.errors import ConfigError, QuestionError
from malt.llm.client.completers import RecordingCompleter, make_store_completer
from malt.llm.store.samples import Store
from malt.questions.question import Question
from malt.trees.pipeline import ask_all
from malt.trees.replay import windows


def read_declared(name: str, config: Path | None) -> RunSpec:
    """Return what a dataset was last declared with, or what a file declares. Raises `ConfigError` or `VersionError`."""
    if config is None:
        return open_version(name, Settings().datasets_dir).spec
    spec = load_spec(config)
    if spec.name != name:
        raise ConfigError(f"{config}: declares dataset {spec.name!r}, not {name!r}; name that one")
    return spec


def choose_questions(questions: Sequence[Question], ids: Sequence[str]) -> Sequence[Question]:
    """Return the questions with these ids, all for none, in order. Raises `QuestionError` for others' ids."""
    known = [question.question_id for question in questions]
    for unknown in (each for each in ids if each not in known):
        close = difflib.get_close_matches(unknown, known, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise QuestionError(f"no question {unknown!r} in the dataset; {meant}questions.parquet lists them")
    return [question for question in questions if question.question_id in ids] if ids else questions


def set_aside(job: Job, roles: Collection[Role], before: float) -> int:
    """Set the stored answers of these roles to the job's questions aside; return how many.

    Only what its trees hold, and what came `before` a time in seconds since the epoch: done again with the same time,
    it spares what has come since.
    """
    with Store(job.settings.store) as store:
        keys = {key for window in windows(job.questions) for key in _keys_of(window, job, roles, store)}
        return store.set_aside(sorted(keys), before)


def _keys_of(questions: Sequence[Question], job: Job, roles: Collection[Role], store: Store) -> list[str]:
    """Return the keys that these questions' trees ask for, as far as the store can tell."""
    noted = RecordingCompleter(make_store_completer(store, [question.question_id for question in questions]))
    asyncio.run(ask_all(questions, job.spec, job.prompts, noted, judge=job.judge))
    return [key for request in noted.requests if request.role in roles for key in request.keys]
