"""`semaphore` is another way to enter the same queue."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from genesis import Queue, QueueTimeoutError
from genesis.queue import QueueSemaphore, Slot
from tests.support.call_group import assert_free
from tests.support.waiting import quiesce, wait_until


async def test_a_semaphore_serves_many_tasks_at_once(queue: Queue) -> None:
    """Many tasks use one semaphore: limit and order hold, and each gives back its own slot."""
    sem = queue.semaphore("support", max_concurrent=2)
    order: list[tuple[int, int]] = []  # by token, as in test_order.py
    inside = most = 0
    two_inside = asyncio.Event()

    async def call(number: int) -> None:
        nonlocal inside, most
        async with sem as slot:
            assert not slot.lost
            order.append((slot.fencing_token, number))
            inside += 1
            most = max(most, inside)
            if inside == 2:
                two_inside.set()
            if number == 0:  # otherwise each might leave before the next is granted
                await two_inside.wait()
            await quiesce(number % 4)
            inside -= 1

    await asyncio.gather(*(call(number) for number in range(40)))
    assert [number for _, number in sorted(order)] == list(range(40))
    assert most == 2
    await assert_free(queue, "support", 2)


async def test_a_semaphore_may_be_nested_in_one_task(queue: Queue) -> None:
    """The inner block gives back the inner slot, the outer block the outer one."""
    sem = queue.semaphore("support", max_concurrent=2, timeout=5.0)
    async with sem as outer:
        async with sem as inner:
            assert inner.fencing_token > outer.fencing_token
            assert (await queue.stats("support"))[:2] == (0, 2)
        (entry,) = await queue.entries("support")
        assert entry.fencing_token == outer.fencing_token
    await assert_free(queue, "support", 2)


async def test_a_semaphore_makes_slots_for_named_items(queue: Queue) -> None:
    """sem(item_id=...) is a slot of the same queue, limit and timeout."""
    await queue.ping()  # connects, for which the deadline leaves no time
    sem = queue.semaphore("support", max_concurrent=1, timeout=0.2)
    async with sem(item_id="call-1") as slot:
        assert (slot.queue_id, slot.item_id) == ("support", "call-1")
        assert (await queue.stats("support")).limit == 1
        with pytest.raises(QueueTimeoutError, match="call-2"):
            async with sem(item_id="call-2"):
                pytest.fail("two in a queue with limit 1")
        with pytest.raises(QueueTimeoutError):
            async with sem:
                pytest.fail("two in a queue with limit 1")
    await assert_free(queue, "support", 1)


async def test_a_semaphore_cancelled_while_it_waits_can_be_used_again(queue: Queue) -> None:
    """A cancelled use does not change the semaphore."""
    sem = queue.semaphore("support", max_concurrent=1)

    async def use() -> None:
        async with sem:
            await asyncio.Event().wait()

    async with sem:
        task = asyncio.create_task(use())

        async def one_waits() -> bool:
            return (await queue.stats("support")).waiting == 1

        await wait_until(one_waits, "one waits")
        task.cancel()
        await asyncio.wait({task})
    async with sem:
        assert (await queue.stats("support"))[:2] == (0, 1)


async def test_slot_and_semaphore_stand_in_the_same_line(queue: Queue) -> None:
    """A semaphore is another way to enter the queue, not another queue."""
    async with queue.slot("support", max_concurrent=1):
        with pytest.raises(QueueTimeoutError):
            async with queue.semaphore("support", max_concurrent=1, timeout=0):
                pytest.fail("two in a queue with limit 1")


async def test_without_a_statement_a_semaphore_gives_back_the_slot_that_was_taken_last(
    queue: Queue,
) -> None:
    """Two stacks that are not nested: the first gives back the second's slot. A third finds none."""
    sem = queue.semaphore("support", max_concurrent=2)
    stacks = [AsyncExitStack() for _ in range(2)]
    slots = [await stack.enter_async_context(sem) for stack in stacks]
    await stacks[0].aclose()
    assert [slot.lost for slot in slots] == [False, False]
    (entry,) = await queue.entries("support")
    assert entry.fencing_token == slots[0].fencing_token
    await stacks[1].aclose()
    with pytest.raises(RuntimeError, match="holds no slot"):
        await sem.__aexit__(None, None, None)
    await assert_free(queue, "support", 2)


class Wrapper:
    """A user's context manager around a semaphore."""

    def __init__(self, semaphore: QueueSemaphore) -> None:
        self._semaphore = semaphore

    async def __aenter__(self) -> Slot:
        return await self._semaphore.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        return await self._semaphore.__aexit__(*error)


async def test_a_wrapper_that_is_nested_gives_back_its_own_slot(queue: Queue) -> None:
    """Although the frame in which the inner one leaves is where that was in which the outer entered."""
    support, busy = queue.semaphore("support", 2), queue.semaphore("busy", 1)
    async with busy, Wrapper(support) as outer:
        for _ in range(30):
            other = asyncio.create_task(Wrapper(busy).__aenter__())
            await quiesce()
            async with Wrapper(support):
                other.cancel()
                await asyncio.wait({other})
            (entry,) = await queue.entries("support")
            assert entry.fencing_token == outer.fencing_token
    await assert_free(queue, "support", 2)


async def test_the_slots_that_a_semaphore_makes_can_be_left_in_any_task_and_order(queue: Queue) -> None:
    """Each gives back its own."""
    sem = queue.semaphore("support", max_concurrent=3)
    stacks = [AsyncExitStack() for _ in range(3)]
    slots = [
        await stack.enter_async_context(sem(item_id=item_id))
        for stack, item_id in zip(stacks, ["a", "b", None], strict=True)
    ]
    await asyncio.create_task(stacks[0].aclose())
    left = {entry.fencing_token for entry in await queue.entries("support")}
    assert left == {slot.fencing_token for slot in slots[1:]}
    await stacks[1].aclose()
    (entry,) = await queue.entries("support")
    assert entry.fencing_token == slots[2].fencing_token
    await stacks[2].aclose()
    await assert_free(queue, "support", 3)
