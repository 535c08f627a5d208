"""Promise 4: each ticket ends once, wherever its task is cancelled."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from genesis import Queue, QueueTimeoutError
from genesis.backends.protocol import EnterRequest, Ticket
from tests.conftest import state_of
from tests.support.call_group import CallGroup, Waits, assert_free
from tests.support.redis_server import RedisServer
from tests.support.waiting import quiesce, wait_until


async def test_cancel_while_waiting_gives_up_the_place(group: CallGroup) -> None:
    """A cancelled waiter is out of the line when its task ends, and the task stays cancelled."""
    holder, waiter, last = await group.line_up("holder", "waiter", "last")
    waiter.task.cancel()
    await asyncio.wait({waiter.task})
    assert waiter.task.cancelled()
    assert await group.queue.position("sales", "last") == 1
    await holder.gone()
    await group.until_entered("holder", "last")
    await last.gone()


async def test_cancel_after_grant_passes_the_slot_on(group: CallGroup, waits: Waits) -> None:
    """A task that is cancelled between its grant and its wake-up does not keep the slot."""
    holder, victim, heir = await group.line_up("holder", "victim", "heir")
    waits.cancel_at_grant(victim)
    await holder.gone()
    await group.until_entered("holder", "heir")
    await asyncio.wait({victim.task})
    assert victim.task.cancelled()
    assert waits.cancelled_after_grant == 1
    assert await group.counts() == (0, 1)
    await heir.gone()


async def test_a_timeout_in_the_turn_of_the_grant_passes_the_slot_on(
    group: CallGroup, waits: Waits
) -> None:
    """If the timer fires just before the grant, the call times out and the next is granted."""
    (holder,) = await group.line_up("holder")
    victim = group.call("victim", timeout=3600)
    await wait_until(lambda: waits.futures, "the victim waits")
    heir = group.call("heir")
    await wait_until(lambda: group.queue.position("sales", "heir"), "the heir waits")
    holder.go()
    waits.futures[0].set_exception(TimeoutError())  # what the timer does
    with pytest.raises(QueueTimeoutError):
        await victim.task
    await group.until_entered("holder", "heir")
    await heir.gone()
    await holder.gone()


async def test_a_cancelled_head_in_the_turn_of_the_release_passes_the_slot_on(group: CallGroup) -> None:
    """The head is cancelled in the iteration in which it is granted: the next waiter gets the slot."""
    for order in ("cancel first", "release first"):
        group.entered.clear()
        holder, victim, heir = await group.line_up("holder", "victim", "heir")
        if order == "cancel first":
            victim.task.cancel()
            holder.go()
        else:
            holder.go()
            victim.task.cancel()
        await group.until_entered("holder", "heir")
        await heir.gone()
        await asyncio.wait({victim.task, holder.task})
        assert await group.counts() == (0, 0)


async def test_cancel_while_holding_passes_the_slot_on(group: CallGroup) -> None:
    """A cancelled body gives its slot back, and the head gets it."""
    holder, waiter = await group.line_up("holder", "waiter")
    holder.task.cancel()
    await group.until_entered("holder", "waiter")
    await asyncio.wait({holder.task})
    assert holder.task.cancelled()
    await waiter.gone()


@pytest.mark.parametrize("turns", range(8))
async def test_cancel_during_enter_takes_nothing(queue: Queue, turns: int) -> None:
    """A task cancelled some iterations into its enter leaves the slot free for the next enter."""
    await queue.ping()  # connects, so that the turns below are those of the enter

    async def call() -> None:
        async with queue.slot("sales", max_concurrent=1):
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await quiesce(turns)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    await assert_free(queue, "sales", 1)


@pytest.mark.parametrize("turns", range(8))
async def test_cancel_during_release_still_gives_the_slot_back(group: CallGroup, turns: int) -> None:
    """A task cancelled some iterations into its release has released, and the head is granted."""
    holder, waiter = await group.line_up("holder", "waiter")
    holder.go()
    await quiesce(1 + turns)
    holder.task.cancel()
    await group.until_entered("holder", "waiter")
    await asyncio.wait({holder.task})
    assert await group.counts() == (0, 1)
    await waiter.gone()
    await assert_free(group.queue, "sales", 1)


@pytest.mark.parametrize("turns", range(5))
@pytest.mark.parametrize("state", ["waiting", "granted", "holding"])
async def test_a_second_cancellation_changes_nothing(
    group: CallGroup, waits: Waits, state: str, turns: int
) -> None:
    """Cancelling again while a cancelled task gives back what it has neither leaks nor strands."""
    holder, victim, heir = await group.line_up("holder", "victim", "heir")
    if state == "granted":
        waits.cancel_at_grant(victim)
        holder.go()
        await wait_until(lambda: waits.cancelled_after_grant, "the victim is cancelled at its grant")
    else:
        if state == "holding":
            await holder.gone()
            await wait_until(lambda: victim.slot, "the victim holds")
        victim.task.cancel()
    await quiesce(turns)
    victim.task.cancel()
    await asyncio.wait({victim.task})
    assert victim.task.cancelled()
    await holder.gone()
    await wait_until(lambda: heir.slot, "the heir holds")
    assert await group.counts() == (0, 1)
    await heir.gone()
    await assert_free(group.queue, "sales", 1)


async def test_leave_gives_back_whatever_there_is_and_only_once(queue: Queue) -> None:
    """leave() returns what the ticket had, in each of its states; a second leave() returns nothing."""
    backend = queue._backend
    holder = await backend.enter(EnterRequest("sales", "holder"))
    gone = await backend.enter(EnterRequest("sales", "gone"))
    heir = await backend.enter(EnterRequest("sales", "heir"))
    assert [holder.position, gone.position, heir.position] == [0, 1, 2]

    async def leave(ticket: Ticket, *expected: object) -> tuple[int, int]:
        result = backend.leave(ticket)
        if result is not None:  # otherwise it is not known yet
            assert (result.was, *(call.item_id for call in result.granted_to)) == expected
        await backend.flush()
        return (await queue.stats("sales"))[:2]

    assert await leave(gone.ticket, "waiting") == (1, 1)
    assert await leave(gone.ticket, None) == (1, 1)
    assert await leave(holder.ticket, "holding", "heir") == (0, 1)
    assert await leave(holder.ticket, None) == (0, 1)
    assert await leave(heir.ticket, "holding") == (0, 0)


async def test_a_body_that_raises_gives_its_slot_back_and_keeps_its_error(group: CallGroup) -> None:
    """The body's exception passes through unchanged, and the head is granted the slot."""
    error = ZeroDivisionError("the body's own")

    async def fail() -> None:
        async with group.queue.slot("sales", max_concurrent=1):
            group.call("waiter")
            await wait_until(lambda: group.queue.position("sales", "waiter"), "it waits")
            raise error

    with pytest.raises(ZeroDivisionError) as caught:
        await fail()
    assert caught.value is error
    await group.until_entered("waiter")
    await group.calls[0].gone()


async def test_a_thousand_tasks_cancelled_at_random_points_leave_nothing(
    queue: Queue, waits: Waits, request: pytest.FixtureRequest, backend_kind: str
) -> None:
    """1,000 tasks cancelled while waiting, being granted and holding leak and strand nothing."""
    rng = random.Random(1000)
    ended: Counter[str] = Counter()
    inside: set[asyncio.Task[None]] = set()
    most = 0

    async def call(number: int) -> None:
        nonlocal most
        state = "waiting"
        task = asyncio.current_task()
        assert task is not None
        try:
            async with queue.slot("sales", item_id=f"call-{number}", max_concurrent=5):
                state = "holding"
                inside.add(task)
                most = max(most, len(inside))
                try:
                    await asyncio.Event().wait()
                finally:
                    inside.discard(task)
        finally:
            ended[state] += 1

    def cancel_some(task: asyncio.Task[Any]) -> None:
        if rng.random() < 0.1:
            task.cancel()

    waits.on_grant = cancel_some
    tasks = [asyncio.create_task(call(number)) for number in range(1000)]
    live = tasks
    while live:
        await asyncio.sleep(0)
        live = [task for task in live if not task.done()]
        if inside and rng.random() < 0.5:
            rng.choice(sorted(inside, key=tasks.index)).cancel()
        if live and rng.random() < (0.3 if inside else 0.02):
            rng.choice(live).cancel()  # sometimes for the second time, while it leaves
    assert all(task.cancelled() for task in tasks)
    assert ended.total() == 1000
    assert min(ended["waiting"], ended["holding"]) > 100, ended
    assert waits.cancelled_after_grant > 5
    assert most == 5
    assert (await queue.stats("sales"))[:3] == (0, 0, 1)
    assert await queue.entries("sales") == []
    await assert_free(queue, "sales", 5)
    await wait_until(lambda: not state_of(queue), "nothing of the calls is kept")
    if backend_kind == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        assert server.keys_without_expiry() == []
