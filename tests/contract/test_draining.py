"""`drain`: calls finish, and no new ones enter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from genesis import Queue, QueueDrainingError
from tests.support.line import Line
from tests.support.waiting import quiesce, wait_until


async def test_drain_lets_calls_finish_and_refuses_new_ones(line: Line) -> None:
    """Waiters are still granted slots, new calls are refused, and it returns after the last one."""
    holder, waiter = await line.call("holder"), await line.call("waiter")
    drained = asyncio.create_task(line.queue.drain())
    await quiesce()
    assert line.queue.draining
    with pytest.raises(QueueDrainingError, match=r"'sales'.*'late'"):
        await line.call("late")
    await holder.gone()
    await wait_until(lambda: waiter.slot, "the waiter is granted")
    assert not drained.done()
    await waiter.gone()
    assert await asyncio.wait_for(drained, 5) == 0
    with pytest.raises(QueueDrainingError):
        async with line.queue.semaphore("support"):
            pytest.fail("entered")
    assert (await line.queue.stats("sales"))[:2] == (0, 0)


async def test_drain_returns_how_many_are_left_at_its_timeout(line: Line) -> None:
    """It cancels no call, and can be called again."""
    await line.call("holder")
    await line.call("waiter")
    assert await line.queue.drain(0.01) == 2
    assert await line.queue.drain(0) == 2
    assert await line.grants() == ["holder", "waiter"]
    assert await line.queue.drain(timeout=5) == 0


async def test_a_task_that_holds_may_still_enter_while_draining(queue: Queue) -> None:
    """Otherwise the task could not end, and `drain` would wait for ever."""
    async with queue.slot("sales"):
        drained = asyncio.create_task(queue.drain())
        await quiesce()
        async with queue.slot("support") as inner:
            assert inner.queue_id == "support"
        assert not drained.done()
    assert await asyncio.wait_for(drained, 5) == 0
    with pytest.raises(QueueDrainingError):
        async with queue.slot("sales"):
            pytest.fail("entered")


@pytest.mark.parametrize("how", ["slot", "semaphore"])
async def test_drain_right_after_a_generator_that_held_was_closed(queue: Queue, how: str) -> None:
    """Its slot is given back in the next iteration of the loop; `drain` waits for that."""

    async def hold() -> AsyncGenerator[int, None]:
        async with queue.slot("sales") if how == "slot" else queue.semaphore("sales"):
            yield 1

    generator = hold()
    await anext(generator)
    await generator.aclose()
    assert await queue.drain(timeout=5) == 0


async def test_drain_of_a_queue_that_was_never_used(queue: Queue) -> None:
    """Without calls it returns at once, and refuses calls afterwards."""
    assert await queue.drain() == 0
    with pytest.raises(QueueDrainingError):
        await queue.slot("sales").__aenter__()


async def test_a_task_that_holds_a_slot_must_not_drain(queue: Queue) -> None:
    """It would wait for itself. Nothing is refused by the attempt."""
    async with queue.slot("sales"):
        with pytest.raises(RuntimeError, match="holds a slot"):
            await queue.drain()
    async with queue.slot("sales"):
        pass
    assert await queue.drain() == 0


async def test_a_new_task_does_not_inherit_the_slot_of_an_ended_one(queue: Queue) -> None:
    """Python gives a new task the id of one that has ended, here one that entered for another."""
    request = queue.slot("sales", max_concurrent=2)
    await asyncio.create_task(request.__aenter__())
    assert await asyncio.create_task(queue.drain(0)) == 1
    with pytest.raises(QueueDrainingError):
        await asyncio.create_task(queue.slot("sales").__aenter__())
    await request.__aexit__(None, None, None)
    assert await queue.drain(timeout=5) == 0
