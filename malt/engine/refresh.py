"""Refreshing: answers that a dataset rests on are set aside in the store, so that the next run asks for them again.

Nothing is lost: an answer that was set aside keeps its row. What grew below it is asked for anew where its prompt is
another one, and found in the store where it is not.
"""

import asyncio
from collections.abc import Collection, Sequence

from malt.config.roles import Role
from malt.engine.job import Job
from malt.llm.client.completers import RecordingCompleter, make_store_completer
from malt.llm.store.samples import Store
from malt.questions.question import Question
from malt.trees.pipeline import ask_all
from malt.trees.replay import windows


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
