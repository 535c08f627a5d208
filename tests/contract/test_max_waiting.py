"""`max_waiting`: a full line refuses a call at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from genesis import Queue, QueueFullError, QueueTimeoutError
from genesis.exceptions import GenesisError
from tests.conftest import state_of
from tests.support.line import Line, learn_holds
from tests.support.waiting import quiesce, turns, wait_until


async def test_a_full_line_refuses_at_once(line: Line) -> None:
    """`max_waiting` counts the waiters; the refused call was never in the line."""
    await line.call("holder")
    await line.call("first", max_waiting=1)
    with pytest.raises(QueueFullError, match=r"'sales'.*'late'.*max_waiting") as caught:
        await line.call("late", max_waiting=1)
    error = caught.value
    assert (error.queue_id, error.item_id, error.depth) == ("sales", "late", 1)
    assert error.retry_after is None
    assert await line.waiting() == ["first"]
    await line.call("second", max_waiting=2)
    assert await line.waiting() == ["first", "second"]
    line.calls = [call for call in line.calls if call.item_id != "late"]
    assert await line.grants() == ["holder", "first", "second"]


async def test_max_waiting_zero_is_a_free_slot_or_nothing(line: Line) -> None:
    """It takes a free slot and never waits; without one it raises QueueFullError."""
    holder = await line.call("holder", max_waiting=0)
    with pytest.raises(QueueFullError):
        async with line.queue.slot("sales", max_waiting=0):
            pytest.fail("entered")
    with pytest.raises(QueueTimeoutError):
        async with line.queue.slot("sales", max_waiting=0, timeout=0):
            pytest.fail("entered")
    await holder.gone()
    async with line.queue.slot("sales", max_waiting=0):
        pass


async def test_a_full_line_admits_exactly_its_number(line: Line) -> None:
    """Of many calls at once, one holds, three wait, and the others are refused."""
    ended: Counter[str] = Counter()
    go = asyncio.Event()

    async def call() -> None:
        try:
            async with line.queue.slot("sales", max_waiting=3):
                await go.wait()
                ended["held"] += 1
        except QueueFullError:
            ended["full"] += 1

    tasks = [asyncio.create_task(call()) for _ in range(20)]
    await wait_until(lambda: ended["full"] == 16, "16 are refused")
    assert (await line.queue.stats("sales"))[:2] == (3, 1)
    go.set()
    await asyncio.gather(*tasks)
    assert ended == {"held": 4, "full": 16}


async def test_a_refusal_has_the_time_to_retry_after(line: Line) -> None:
    """Once ten holds are known, `retry_after` is the expected wait of one more waiter."""
    mean = await learn_holds(line.queue)
    await line.call("holder")
    with pytest.raises(QueueFullError) as caught:
        await line.call("late", max_waiting=0)
    assert caught.value.retry_after == pytest.approx(mean, rel=0.01)
    line.calls.pop()
    await line.grants()


async def test_a_refused_call_leaves_the_limit_and_the_agreement_as_they_are(line: Line) -> None:
    """It leaves no state behind, even if it was the only call of a paused queue."""
    await line.queue.set_limit("sales", 0)
    with pytest.raises(QueueFullError):
        async with line.queue.slot("sales", max_concurrent=7, max_waiting=0):
            pytest.fail("entered")
    await line.queue.set_limit("sales", None)
    assert (await line.queue.stats("sales"))[:3] == (0, 0, 1)
    assert not state_of(line.queue)


@pytest.mark.parametrize("why", ["busy", "full", "another limit", "draining", "closed"])
async def test_a_caller_that_retries_at_once_does_not_stop_the_loop(queue: Queue, why: str) -> None:
    """However often it is refused, other tasks run in between: the one that could let it in, say."""
    options: dict[str, Any] = {
        "busy": {"timeout": 0},
        "full": {"max_waiting": 0},
        "another limit": {"max_concurrent": 7},
    }.get(why, {})

    async def refused() -> None:
        with pytest.raises(GenesisError):
            await queue.slot("sales", **options).__aenter__()

    async with queue.slot("sales", max_concurrent=1):
        if why == "draining":
            draining = asyncio.create_task(queue.drain())
            await quiesce()
        elif why == "closed":
            await queue.close()
        # In another task: one that holds might enter while draining.
        assert await asyncio.create_task(turns(refused)) >= 9
    if why == "draining":
        await draining
