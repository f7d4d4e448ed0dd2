"""Refreshing: answers that a dataset rests on are set aside in the store, so that the next run asks for them again.

Nothing is lost: an answer that was set aside keeps its row. What grew below it is asked for anew where its prompt is
another one, and found in the store where it is not.
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence

from malt.inputs import Inputs, windows
from malt.llm.asker import recall
from malt.llm.completion import Complete, Completion, CompletionRequest
from malt.llm.store import Store
from malt.questions import Question
from malt.settings import Settings
from malt.spec import Role, RunSpec
from malt.trees.assessment import ask_all


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
    asked = KeysNoted(recall(store, [question.question_id for question in questions]), roles)
    asyncio.run(ask_all(questions, spec, inputs.prompts, asked))
    return asked.keys


class KeysNoted:
    """A `Complete` that notes what some roles are asked for."""

    def __init__(self, complete: Complete, roles: Collection[Role]) -> None:
        self.complete = complete
        self.roles = roles
        self.keys: list[str] = []

    async def __call__(self, request: CompletionRequest) -> Sequence[Completion]:
        """Return the samples; raises what `complete` raises."""
        if request.role in self.roles:
            self.keys.extend(request.keys)
        return await self.complete(request)
