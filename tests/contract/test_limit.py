"""Promise 1: never more than the limit hold a queue; and which limit that is."""

from __future__ import annotations

import asyncio
import random
import sys

import pytest

from genesis import Queue, QueueTimeoutError
from genesis.exceptions import LimitMismatchError
from tests.support.call_group import CallGroup, assert_free
from tests.support.waiting import quiesce, wait_until


@pytest.mark.parametrize("limit", [1, 4])
async def test_never_more_than_the_limit_are_inside(queue: Queue, limit: int) -> None:
    """The bodies themselves see the limit reached and never exceeded."""
    rng = random.Random(limit)
    inside = most = 0
    full = asyncio.Event()

    async def call() -> None:
        nonlocal inside, most
        async with queue.slot("sales", max_concurrent=limit):
            inside += 1
            most = max(most, inside)
            if inside == limit:
                full.set()
            await full.wait()  # the first holders stay until all slots are in use
            await quiesce(rng.randrange(4))
            inside -= 1

    await asyncio.gather(*(call() for _ in range(60)))
    assert most == limit


async def test_a_raised_limit_is_granted_to_waiters_at_once(group: CallGroup) -> None:
    """set_limit() upwards grants slots to the heads of the line, although no holder leaves."""
    calls = await group.line_up("a", "b", "c", "d", "e")
    await group.queue.set_limit("sales", 3)
    assert (await group.queue.stats("sales"))[:3] == (2, 3, 3)
    await group.until_entered("a", "b", "c")
    await group.queue.set_limit("sales", None)
    for call in calls:
        await call.gone()
    assert group.entered == ["a", "b", "c", "d", "e"]


async def test_a_newcomer_does_not_overtake_into_a_raised_limit(group: CallGroup) -> None:
    """The slot that set_limit() adds goes to the waiter, even if a newcomer enters at the same time."""
    holder, waiter = await group.line_up("holder", "waiter")
    raising = asyncio.create_task(group.queue.set_limit("sales", 2))
    newcomer = group.call("newcomer")
    await raising
    await group.until_entered("holder", "waiter")
    await wait_until(lambda: group.queue.position("sales", "newcomer"), "the newcomer waits")
    await group.queue.set_limit("sales", None)
    for call in (holder, waiter, newcomer):
        await call.gone()


async def test_a_lowered_limit_takes_effect_as_holders_leave(group: CallGroup) -> None:
    """set_limit() downwards takes no slot away, but none is granted until enough holders have left."""
    a, b, c, d = await group.line_up("a", "b", "c", "d", limit=3)
    await group.queue.set_limit("sales", 1)
    assert (await group.queue.stats("sales"))[:3] == (1, 3, 1)
    assert a.slot is not None
    assert not a.slot.lost
    await a.gone()
    await b.gone()
    assert await group.counts() == (1, 1)
    await quiesce()
    assert group.entered == ["a", "b", "c"]
    await c.gone()
    await group.until_entered("a", "b", "c", "d")
    await group.queue.set_limit("sales", None)
    await d.gone()


async def test_limit_zero_pauses_the_queue(group: CallGroup) -> None:
    """At limit 0 no slot is granted, not even with timeout=0; any other limit ends the pause."""
    await group.queue.set_limit("sales", 0)
    with pytest.raises(QueueTimeoutError):
        async with group.queue.slot("sales", max_concurrent=5, timeout=0):
            pytest.fail("the queue is paused")
    calls = await group.line_up("a", "b", limit=5)
    assert await group.counts() == (2, 0)
    await group.queue.set_limit("sales", 1)
    await group.until_entered("a")
    await group.queue.set_limit("sales", 0)
    await calls[0].gone()
    await quiesce()
    assert await group.counts() == (1, 0)
    await group.queue.set_limit("sales", None)
    await group.until_entered("a", "b")
    await calls[1].gone()


async def test_the_end_of_an_override_brings_back_the_call_sites_limit(group: CallGroup) -> None:
    """set_limit(None) restores the limit of the call sites, and grants what it allows."""
    await group.queue.set_limit("sales", 1)
    calls = await group.line_up("a", "b", "c", limit=2)
    assert (await group.queue.stats("sales"))[:3] == (2, 1, 1)
    await group.queue.set_limit("sales", None)
    assert (await group.queue.stats("sales"))[:3] == (1, 2, 2)
    await group.until_entered("a", "b")
    for call in calls:
        await call.gone()


async def test_an_override_outlasts_an_idle_queue(queue: Queue) -> None:
    """set_limit() overrides every call site until it is ended, with or without calls."""
    await queue.set_limit("sales", 3)
    assert (await queue.stats("sales")).limit == 3
    async with queue.slot("sales", max_concurrent=1), queue.slot("sales", max_concurrent=1, timeout=0):
        assert (await queue.stats("sales"))[:3] == (0, 2, 3)
    assert (await queue.stats("sales")).limit == 3
    await queue.set_limit("sales", None)
    assert (await queue.stats("sales")).limit == 1
    await assert_free(queue, "sales", 1)


@pytest.mark.parametrize("ending", ["release", "cancel", "evict", "refuse"])
async def test_an_idle_queue_forgets_its_limit(group: CallGroup, ending: str) -> None:
    """After its last call, however that ended, a queue has the limit 1 again."""
    queue = group.queue
    (call,) = await group.line_up("a", limit=7)
    assert (await queue.stats("sales")).limit == 7
    if ending == "refuse":
        await queue.set_limit("sales", 0)
        await call.gone()
        with pytest.raises(QueueTimeoutError):
            async with queue.slot("sales", max_concurrent=7, timeout=0):
                pytest.fail("the queue is paused")
        await queue.set_limit("sales", None)
    elif ending == "cancel":
        call.task.cancel()
        await asyncio.wait({call.task})
    elif ending == "evict":
        await queue.evict("sales", "a")
    else:
        await call.gone()
    assert (await queue.stats("sales")).limit == 1
    call.go()
    await asyncio.wait({call.task})
    async with queue.slot("sales", timeout=0):
        with pytest.raises(QueueTimeoutError):
            async with queue.slot("sales", timeout=0):
                pytest.fail("the old limit is still in force")


async def test_no_max_concurrent_takes_the_limit_in_force_or_one(queue: Queue) -> None:
    """A call without a limit takes that of the queue; without either the limit is 1."""
    async with queue.slot("sales"):
        assert (await queue.stats("sales")).limit == 1
        with pytest.raises(QueueTimeoutError):
            async with queue.slot("sales", timeout=0):
                pytest.fail("two in a queue with limit 1")
    async with queue.slot("sales", max_concurrent=2), queue.slot("sales", timeout=0):
        assert (await queue.stats("sales"))[:3] == (0, 2, 2)


async def test_the_first_limit_after_calls_without_one_is_granted_to_waiters(group: CallGroup) -> None:
    """Calls without a limit wait at limit 1 until a call has a larger one; they are granted first."""
    a, b = await group.line_up("a", "b", limit=None)
    c = group.call("c", limit=2)
    await group.until_entered("a", "b")
    await wait_until(lambda: group.queue.position("sales", "c"), "c waits")
    assert (await group.queue.stats("sales"))[:3] == (1, 2, 2)
    for call in (a, b, c):
        await call.gone()


async def test_the_largest_limit_is_reported_as_it_is(queue: Queue) -> None:
    """`sys.maxsize` admits every call, and no statistic becomes negative."""
    async with queue.slot("sales", max_concurrent=sys.maxsize), queue.slot("sales", timeout=0):
        stats = await queue.stats("sales")
    assert stats.in_use == 2
    assert stats.limit >= 2**53


async def test_another_limit_is_refused_before_anything_is_enqueued(group: CallGroup) -> None:
    """A call site that disagrees gets an error with both limits; queue and limit do not change."""
    (holder,) = await group.line_up("holder", limit=2)
    with pytest.raises(LimitMismatchError) as caught:
        async with group.queue.slot("sales", item_id="odd", max_concurrent=3):
            pytest.fail("entered with another limit")
    error = caught.value
    assert isinstance(error, ValueError)
    assert (error.queue_id, error.item_id, error.current, error.requested) == ("sales", "odd", 2, 3)
    for part in ("'sales'", "'odd'", "max_concurrent=3", "max_concurrent=2", "set_limit"):
        assert part in str(error)
    assert (await group.queue.stats("sales"))[:3] == (0, 1, 2)
    async with group.queue.slot("sales", timeout=0), group.queue.slot("support", max_concurrent=3):
        pass
    await holder.gone()


async def test_a_waiter_counts_for_the_agreement_too(group: CallGroup) -> None:
    """The limit of a waiter binds other calls as well, also under an override."""
    await group.queue.set_limit("sales", 0)
    (waiter,) = await group.line_up("waiter", limit=2)
    with pytest.raises(LimitMismatchError):
        async with group.queue.slot("sales", max_concurrent=3, timeout=0):
            pytest.fail("entered with another limit")
    await group.queue.set_limit("sales", None)
    await waiter.gone()


@pytest.mark.parametrize("ending", ["released", "timeout", "refused", "cancelled", "evicted"])
async def test_the_agreement_ends_with_the_last_call(group: CallGroup, ending: str) -> None:
    """After all calls of a queue have ended, in any way, a call can name another limit."""
    queue = group.queue
    (holder,) = await group.line_up("holder", limit=1)
    if ending in ("timeout", "refused"):
        with pytest.raises(QueueTimeoutError):
            async with queue.slot("sales", max_concurrent=1, timeout=0 if ending == "refused" else 0.2):
                pytest.fail("two in a queue with limit 1")
    elif ending != "released":
        (waiter,) = await group.line_up("waiter", limit=1)
        if ending == "cancelled":
            waiter.task.cancel()
        else:
            await queue.evict("sales", "waiter")
        await asyncio.wait({waiter.task})
    await holder.gone()
    async with queue.slot("sales", max_concurrent=3, timeout=0):
        assert (await queue.stats("sales")).limit == 3
