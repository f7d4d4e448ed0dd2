"""A process that is suspended for a minute (SIGSTOP, a sleeping laptop), in virtual time."""

import asyncio

import pytest

from malt.concurrency import within
from tests.virtual_time import VirtualLoop

MINUTE_S = 60.0


async def answer_after(seconds: float, turns: int) -> str:
    """Return an answer that arrives after some time and takes some turns of the loop to be read."""
    await asyncio.sleep(seconds)
    for _ in range(turns):
        await asyncio.sleep(0)
    return "answered"


def stop_for_a_minute() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.sleeper.now_s += MINUTE_S


@pytest.mark.virtual_time
@pytest.mark.parametrize("stopped_at_s", [0.5, 5.0, 9.0])
async def test_an_answer_that_came_while_the_process_stood_still_is_taken(stopped_at_s: float) -> None:
    asyncio.get_running_loop().call_later(stopped_at_s, stop_for_a_minute)
    assert await within(20.0, answer_after(10.0, turns=50)) == "answered"


@pytest.mark.virtual_time
async def test_a_plain_timeout_would_have_lost_the_answer() -> None:
    asyncio.get_running_loop().call_later(5.0, stop_for_a_minute)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(answer_after(10.0, turns=50), 20.0)


@pytest.mark.virtual_time
async def test_an_answer_that_never_comes_times_out_once_its_time_has_run() -> None:
    loop = asyncio.get_running_loop()
    loop.call_later(5.0, stop_for_a_minute)
    began = loop.time()
    with pytest.raises(TimeoutError):
        await within(20.0, answer_after(1_000.0, turns=0))
    assert MINUTE_S + 10 < loop.time() - began < MINUTE_S + 20 + 2
