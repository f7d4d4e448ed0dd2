"""Refreshing: answers that a dataset rests on are set aside in the store, so that the next run asks for them again.

Nothing is lost: an answer that was set aside keeps its row. What grew below it is asked for anew where its prompt is
another one, and found in the store where it is not.
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence

from malt.config.settings import Settings
from malt.config.spec import Role, RunSpec
from malt.engine.job import Inputs
from malt.llm.client.completers import RecordingCompleter, make_store_completer
from malt.llm.store.samples import Store
from malt.questions.question import Question
from malt.trees.pipeline import ask_all
from malt.trees.replay import windows


def set_aside(
    questions: Sequence[Question],
    inputs: Inputs,
    spec: RunSpec,
    roles: Collection[Role],
    before: float,
    settings: Settings,
) -> int:
    """Set the stored answers of these roles to these questions aside; return how many.

    Only what this spec's trees hold, and what came `before` a time in seconds since the epoch: done again with the
    same time, it spares what has come since.
    """
    with Store(settings.store) as store:
        keys = {key for window in windows(questions) for key in keys_of(window, inputs, spec, roles, store)}
        return store.set_aside(sorted(keys), before)


def keys_of(
    questions: Sequence[Question], inputs: Inputs, spec: RunSpec, roles: Collection[Role], store: Store
) -> Iterable[str]:
    """Return the keys that these questions' trees ask for, as far as the store can tell."""
    noted = RecordingCompleter(make_store_completer(store, [question.question_id for question in questions]))
    asyncio.run(ask_all(questions, spec, inputs.prompts, noted))
    return [key for request in noted.requests if request.role in roles for key in request.keys]
