"""The storage of answers, saved by runs that begin at the same moment."""

import asyncio
from contextlib import suppress

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from tasks.stored_answers import AnswerStorage, save_answer_storage

RUNS = 8


async def save_together() -> list[AnswerStorage]:
    """Save it at once by several, on a server that has never heard of it."""
    async with get_client() as client:
        with suppress(ObjectNotFound):
            kind = await client.read_block_type_by_slug("malt-answers")
            await client.delete_block_type(kind.id)
    return await asyncio.gather(*(save_answer_storage() for _ in range(RUNS)))


def test_runs_that_begin_together_do_not_stumble_over_what_they_all_save() -> None:
    assert len(asyncio.run(save_together())) == RUNS
