"""Order of the fair lock: the question that came first, and within it the request that came first."""

import asyncio

from malt.concurrency import FairLock


async def order_of(requests: list[tuple[str, str]], cancelled: int | None = None) -> list[str]:
    """Let requests (question, name) queue behind a first one, of question `q0`; return the order of their turns."""
    turns, order, first_is_in = FairLock(), [], asyncio.Event()

    async def enter(question: str, name: str) -> None:
        async with turns.turn(question):
            order.append(name)
            if name == "first":
                await first_is_in.wait()

    tasks = [asyncio.create_task(enter(*request)) for request in [("q0", "first"), *requests]]
    await asyncio.sleep(0.01)
    first_is_in.set()
    if cancelled is not None:
        tasks[cancelled].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return order


async def test_the_question_that_came_first_goes_first() -> None:
    assert await order_of([("q1", "a"), ("q2", "b"), ("q0", "c"), ("q1", "d")]) == ["first", "c", "a", "d", "b"]


async def test_a_cancelled_waiter_does_not_hold_up_the_others() -> None:
    assert await order_of([("q1", "a"), ("q2", "b"), ("q3", "c")], cancelled=1) == ["first", "b", "c"]


async def test_a_waiter_that_is_cancelled_at_its_turn_passes_it_on() -> None:
    turns, order = FairLock(), []

    async def enter(name: str) -> None:
        async with turns.turn(name):
            order.append(name)

    async def call_the_next_and_cancel_it() -> None:
        async with turns.turn("one"):
            await asyncio.sleep(0)
        second.cancel()

    first, second, third = map(asyncio.create_task, (call_the_next_and_cancel_it(), enter("two"), enter("three")))
    await asyncio.wait_for(asyncio.gather(first, third), 60)
    assert second.cancelled()
    assert order == ["three"]
