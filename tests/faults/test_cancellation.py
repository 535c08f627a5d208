"""Cancellation of single tasks, of thousands, or of all tasks: nothing leaks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.conftest import LEASE
from tests.support.fleet import AT_ONCE, IN_TIME, SALES, Fleet, seconds
from tests.support.waiting import quiesce, wait_until


@pytest.mark.parametrize("how", ["held", "deaf", "refused"])
async def test_cancelling_while_the_connection_is_broken_leaks_nothing(fleet: Fleet, how: str) -> None:
    """Entering, waiting and holding tasks end at once, and their slots come free."""
    proxy = await fleet.proxy()
    queue, other = fleet.queue(proxy.url, operation_timeout=LEASE), fleet.queue()
    holder = fleet.call(queue, "holder")
    await holder.held()
    (waiter,) = await fleet.waiting(queue, "waiter")
    (live,) = await fleet.waiting(other, "live")
    relay = proxy.current
    if how == "held":
        relay.hold()
    elif how == "deaf":
        relay.deaf = True
    else:
        proxy.refusing = True
        proxy.cut()
    entering = fleet.call(queue, "entering")
    await quiesce()
    began = time.monotonic()
    for call in (entering, waiter, holder):
        call.task.cancel()
    for call in (entering, waiter, holder):
        await call.ended()
        assert call.task.done()
    assert time.monotonic() - began < AT_ONCE
    proxy.refusing = False
    await live.held(IN_TIME)
    relay.release()
    await live.leave()
    await fleet.settled()


@pytest.mark.parametrize("turns", range(12))
async def test_cancelling_an_enter_at_any_turn_leaks_nothing(fleet: Fleet, turns: int) -> None:
    """From before its bytes are written until after its reply is read."""
    queue = fleet.queue()
    await queue.ping()
    for _ in range(10):
        call = fleet.call(queue, "call")
        await quiesce(turns)
        call.task.cancel()
        await call.ended()
    await fleet.settled()


# All tasks


def cancel_all_tasks() -> list[asyncio.Task[Any]]:
    """The shutdown recipe of many programs."""
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    return tasks


async def test_a_shutdown_that_cancels_all_tasks_gives_everything_back(fleet: Fleet) -> None:
    """Cancelled and gathered; then close() is fast, and Redis has no holder left."""
    queue = fleet.queue(lease=60.0)
    await fleet.call(queue, "holder").held()
    waiter = fleet.call(queue, "waiter")
    await fleet.waits(queue, "waiter")
    await asyncio.gather(*cancel_all_tasks(), return_exceptions=True)
    assert waiter.task.cancelled()
    took, _ = await seconds(queue.close())
    assert took < AT_ONCE
    assert fleet.server.client.exists(f"genesis:queue:{{{SALES}}}:holding") == 0
    assert fleet.server.client.exists(f"genesis:queue:{{{SALES}}}:waiting") == 0


@pytest.mark.parametrize("turns", [0, 1, 3, 10, 30])
async def test_a_queue_goes_on_after_all_tasks_were_cancelled(fleet: Fleet, turns: int) -> None:
    """Including the library's own, even while it connects: the next call works."""
    queue = fleet.queue(lease=60.0)
    first = fleet.call(queue, "first")
    await quiesce(turns)
    await asyncio.gather(*cancel_all_tasks(), return_exceptions=True)
    await first.ended()
    took, error = await seconds(fleet.call(queue, "next").ended())
    assert error is None
    assert took < 5.0  # a heartbeat comes every 20 s
    assert fleet.disruptions() == {}
    await fleet.settled()


@pytest.mark.slow
async def test_a_holder_that_survives_the_cancelling_of_all_tasks_keeps_its_slot(fleet: Fleet) -> None:
    """Heartbeats run in no task, so they continue for longer than a lease."""
    queue = fleet.queue()
    async with queue.slot(SALES) as slot:
        await asyncio.gather(*cancel_all_tasks(), return_exceptions=True)
        await asyncio.sleep(1.5 * LEASE)  # that it is longer than a lease is the subject
        assert not slot.lost
    await fleet.settled()


async def test_all_tasks_may_be_cancelled_while_redis_is_away(fleet: Fleet) -> None:
    """The attempts to connect continue."""
    queue = fleet.queue()
    await queue.ping()
    fleet.server.kill()
    await wait_until(fleet.disruptions, "the connection is lost")
    for _ in range(5):
        await asyncio.gather(*cancel_all_tasks(), return_exceptions=True)
        await asyncio.sleep(0.02)  # at which stage of connecting it comes is the subject
    fleet.server.start()
    await fleet.settled()
