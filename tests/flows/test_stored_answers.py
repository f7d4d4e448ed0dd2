"""The answer storage block, saved by several runs that start at the same moment."""

import asyncio
from contextlib import suppress

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from tasks.stored_answers import AnswerStorage, save_answer_storage

RUNS = 8


async def save_together() -> list[AnswerStorage]:
    """Save the block several times at once, on a server that does not know its type."""
    async with get_client() as client:
        with suppress(ObjectNotFound):
            kind = await client.read_block_type_by_slug("malt-answers")
            await client.delete_block_type(kind.id)
    return await asyncio.gather(*(save_answer_storage() for _ in range(RUNS)))


def test_runs_that_start_together_can_all_save_the_storage() -> None:
    assert len(asyncio.run(save_together())) == RUNS
