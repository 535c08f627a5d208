"""The promises, over {memory, redis} x {bare, observed}. Themes: order, limit, ending, asking."""

from __future__ import annotations

import asyncio

from genesis import Queue
from tests.waiting import wait_until


async def test_grants_are_given_in_the_order_of_entering(queue: Queue) -> None:
    """Waiters get their slots first in, first out."""
    order: list[int] = []

    async def call(number: int) -> None:
        async with queue.slot("sales", item_id=f"call-{number}", max_concurrent=2):
            order.append(number)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(call(number)) for number in range(20)]
    await asyncio.gather(*tasks)
    assert order == list(range(20))


async def test_stats_count_who_waits_and_who_holds(queue: Queue) -> None:
    """stats() tells the truth while one holds and one waits."""
    leave = asyncio.Event()

    async def call() -> None:
        async with queue.slot("sales", max_concurrent=1):
            await leave.wait()

    tasks = [asyncio.create_task(call()) for _ in range(2)]

    async def one_waits() -> bool:
        return (await queue.stats("sales"))[:3] == (1, 1, 1)

    await wait_until(one_waits, "one holds and one waits")
    leave.set()
    await asyncio.gather(*tasks)
    assert (await queue.stats("sales"))[:2] == (0, 0)
