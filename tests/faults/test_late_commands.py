"""Lost replies, and late commands that Redis runs after their connection was lost."""

from __future__ import annotations

import asyncio

import pytest

from genesis.exceptions import BackendUnavailableError, QueueTimeoutError
from tests.conftest import LEASE
from tests.support.fleet import BEAT, SALES, Call, Fleet, leave_as_granted, renewed
from tests.support.waiting import quiesce, wait_until


async def test_an_enter_whose_reply_is_lost_runs_once(fleet: Fleet) -> None:
    """The next connection's sync lists it: one ticket, and it holds."""
    proxy = await fleet.proxy()
    queue, other = fleet.queue(proxy.url), fleet.queue()
    await fleet.call(queue, "before").ended()  # so that a plain enter follows
    relay = proxy.current
    relay.deaf = True
    call = fleet.call(queue, "call")

    async def carried_out() -> bool:
        return await fleet.holders(other) == ["call"]

    await wait_until(carried_out, "Redis has carried it out")
    relay.cut()
    await call.held()
    assert await fleet.holders(other) == ["call"]
    assert (await other.stats(SALES)).waiting == 0
    await call.leave()
    await fleet.settled()


async def test_a_waiters_enter_whose_reply_is_lost_keeps_its_place(fleet: Fleet) -> None:
    """Calls that enter before the new connection is up are behind it."""
    proxy = await fleet.proxy()
    queue, other = fleet.queue(proxy.url), fleet.queue()
    await fleet.call(queue, "before").ended()
    holder = fleet.call(other, "holder")
    await holder.held()
    proxy.current.deaf = True
    first = fleet.call(queue, "first")
    await fleet.waits(other, "first")
    (second,) = await fleet.waiting(other, "second")
    proxy.current.cut()
    await queue.ping()
    assert await fleet.order(other) == ["first", "second"]
    await holder.leave()
    await first.held()
    await first.leave()
    await second.held()
    await second.leave()
    await fleet.settled()


async def test_a_leave_whose_reply_is_lost_passes_the_slot_on_once(fleet: Fleet) -> None:
    """The following sync does not list the ticket, and removes no other ticket."""
    proxy = await fleet.proxy()
    queue, other = fleet.queue(proxy.url), fleet.queue()
    holder = fleet.call(queue, "holder")
    await holder.held()
    first, second = await fleet.waiting(other, "first", "second")
    relay = proxy.current
    relay.deaf = True
    await holder.leave()
    await first.held()
    relay.cut()
    await queue.ping()
    assert not second.holds
    assert await fleet.holders(other) == ["first"]
    await first.leave()
    await second.held()
    await second.leave()
    await fleet.settled()


async def test_a_leave_that_never_arrives_is_made_up_for_by_the_next_connection(fleet: Fleet) -> None:
    """Long before the lease lapses, and nothing is kept of it."""
    proxy = await fleet.proxy()
    queue, other = fleet.queue(proxy.url, lease=60.0), fleet.queue()
    holder = fleet.call(queue, "holder")
    await holder.held()
    (waiter,) = await fleet.waiting(other, "waiter")
    relay = proxy.current
    relay.hold()
    await holder.leave()
    await wait_until(lambda: relay.held_chunks, "the leave is on its way")
    relay.cut()
    await waiter.held(10.0)  # a heartbeat comes every 20 s
    await waiter.leave()
    await fleet.settled()


@pytest.mark.parametrize("kept", [True, False], ids=["others stay", "queue left"])
@pytest.mark.parametrize("ending", ["gave up", "left", "refused"])
async def test_a_late_enter_of_a_call_that_is_over_takes_nothing(
    fleet: Fleet, ending: str, kept: bool
) -> None:
    """Its bytes arrive at the end: no slot is taken, whether or not its instance has other calls."""
    proxy = await fleet.proxy()
    queue, other = fleet.queue(proxy.url), fleet.queue()
    await fleet.call(queue, "before", 2).ended()
    staying: list[Call] = []
    if ending == "refused":
        staying.append(fleet.call(other, "holder", 2))
        await staying[0].held()
    if kept:
        staying.append(fleet.call(queue, "keeper", 2))
    elif ending == "refused":
        staying.append(fleet.call(other, "second holder", 2))
    for call in staying:
        await call.held()
    relay = proxy.current
    relay.hold()
    timeout = {"gave up": 0.1, "refused": 0}.get(ending)
    late = fleet.call(queue, "unhurried", 2, timeout=timeout)
    await wait_until(lambda: b"unhurried" in relay.received, "the command is on its way")
    if ending == "gave up":
        assert isinstance(await late.failure(), BackendUnavailableError)
    relay.cut()
    if ending == "refused":
        assert isinstance(await late.failure(), QueueTimeoutError)
    elif ending == "left":
        await late.held()
        await late.leave()
    await queue.ping()
    for call in staying:
        if call.item.endswith("holder"):
            await call.leave()
    await relay.arrive_late()
    assert await fleet.holders(other) == (["keeper"] if kept else [])
    for call in staying:
        await call.ended()
    await fleet.settled(2)


@pytest.mark.parametrize("position", ["holder", "waiter"])
async def test_a_late_enter_of_a_call_that_has_been_synced_changes_nothing(
    fleet: Fleet, position: str
) -> None:
    """The new connection's sync has entered it; then the old command arrives: one ticket."""
    proxy = await fleet.proxy()
    queue, other = fleet.queue(proxy.url), fleet.queue()
    await fleet.call(queue, "before").ended()
    calls = []
    if position == "waiter":
        calls.append(fleet.call(other, "holder"))
        await calls[0].held()
    relay = proxy.current
    relay.hold()
    call = fleet.call(queue, "copied")
    await wait_until(lambda: b"copied" in relay.received, "the command is on its way")
    relay.cut()
    if position == "waiter":
        await fleet.waits(other, "copied")
    else:
        await call.held()
    calls.append(call)
    calls += await fleet.waiting(other, "behind")
    await relay.arrive_late()
    entries = await other.entries(SALES)
    await leave_as_granted(calls)
    assert [entry.item_id for entry in entries] == [item.item for item in calls]
    await fleet.settled()


async def test_a_late_enter_of_a_holder_that_was_evicted_takes_no_slot(fleet: Fleet) -> None:
    """Although its task still works."""
    proxy = await fleet.proxy()
    queue, other = fleet.queue(proxy.url), fleet.queue()
    await fleet.call(queue, "before").ended()
    relay = proxy.current
    relay.hold()
    holder = fleet.call(queue, "stuck")
    await wait_until(lambda: relay.held_chunks, "the command is on its way")
    relay.cut()
    await holder.held()
    assert await other.evict(SALES, "stuck") == 1
    await wait_until(lambda: holder.lost, "the holder knows")
    await relay.arrive_late()
    assert (await other.stats(SALES))[:2] == (0, 0)
    await renewed(queue)
    assert (await other.stats(SALES))[:2] == (0, 0)
    await holder.leave()
    await fleet.settled()


async def test_a_waiter_that_is_evicted_while_its_connection_breaks_is_evicted(fleet: Fleet) -> None:
    """The message is lost; the next connection's sync does not bring the ticket back."""
    proxy = await fleet.proxy()
    queue, other = fleet.queue(proxy.url), fleet.queue()
    holder = fleet.call(other, "holder")
    await holder.held()
    (waiter,) = await fleet.waiting(queue, "waiter")
    proxy.current.deaf = True
    assert await other.evict(SALES, "waiter") == 1
    proxy.current.cut()
    error = await waiter.failure()
    assert type(error).__name__ == "EvictedError"
    assert await fleet.order(other) == []
    await holder.leave()
    await fleet.settled()


# set_limit and evict


@pytest.mark.parametrize("operation", ["set_limit", "evict"])
async def test_an_operation_whose_reply_is_lost_is_an_error_that_is_safe_to_repeat(
    fleet: Fleet, operation: str
) -> None:
    """The error says that it may have been applied; it was, and repeating it changes nothing."""
    proxy = await fleet.proxy()
    queue, other = fleet.queue(proxy.url), fleet.queue()
    holder = fleet.call(other, "victim")
    await holder.held()
    await queue.stats(SALES)
    relay = proxy.current

    async def ask() -> object:
        if operation == "set_limit":
            await queue.set_limit(SALES, 5)
            return None
        return await queue.evict(SALES, "victim")

    async def applied() -> bool:
        stats = await other.stats(SALES)
        return stats.limit == 5 if operation == "set_limit" else stats.in_use == 0

    proxy.delay = 0.05  # so that its reply is not there as soon as it is sent
    asking = asyncio.create_task(ask())
    if operation == "evict":  # it looks before it evicts
        await wait_until(lambda: b"victim" in relay.received, "the command is on its way")
    relay.deaf = True
    await wait_until(applied, "it is applied")
    relay.cut()
    proxy.delay = 0.0
    with pytest.raises(BackendUnavailableError, match="safe to repeat"):
        await asking
    assert await ask() in (None, 0)
    assert await applied()
    await other.set_limit(SALES, None)
    await holder.ended()


async def test_a_late_set_limit_does_not_undo_a_newer_one(fleet: Fleet) -> None:
    """The caller got an error, and another instance has set another limit since."""
    proxy = await fleet.proxy()
    one, two = fleet.queue(proxy.url), fleet.queue()
    await one.ping()
    relay = proxy.current
    relay.hold()
    setting = asyncio.create_task(one.set_limit(SALES, 5))
    await wait_until(lambda: relay.held_chunks, "the command is on its way")
    relay.cut()
    with pytest.raises(BackendUnavailableError):
        await setting
    await two.set_limit(SALES, 7)
    await relay.arrive_late()
    assert (await two.stats(SALES)).limit == 7
    await two.set_limit(SALES, None)


@pytest.mark.parametrize("ending", ["failed", "cancelled"])
async def test_a_late_pause_that_was_given_up_does_not_undo_what_came_after(
    fleet: Fleet, ending: str
) -> None:
    """The same instance has set another limit since."""
    proxy = await fleet.proxy()
    one, two = fleet.queue(proxy.url), fleet.queue()
    await one.ping()
    relay = proxy.current
    relay.hold()
    setting = asyncio.create_task(one.set_limit(SALES, 0))
    await wait_until(lambda: relay.held_chunks, "the command is on its way")
    if ending == "cancelled":
        setting.cancel()
    else:
        relay.cut()
    await asyncio.gather(setting, return_exceptions=True)
    relay.cut()
    await one.ping()
    await one.set_limit(SALES, 7)
    await relay.arrive_late()
    assert (await two.stats(SALES)).limit == 7
    await two.set_limit(SALES, None)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8])
@pytest.mark.parametrize("operation", ["set_limit", "evict"])
async def test_cancelling_set_limit_or_evict_loses_nothing_of_its_reply(
    fleet: Fleet, operation: str, turns: int
) -> None:
    """Its reply alone names the waiter of this instance that it granted a slot."""
    queue = fleet.queue(lease=60.0)
    holder = fleet.call(queue, "holder")
    await holder.held()
    (waiter,) = await fleet.waiting(queue, "waiter")
    ask = queue.set_limit(SALES, 2) if operation == "set_limit" else queue.evict(SALES, "holder")
    asking = asyncio.create_task(ask)
    await quiesce(turns)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    applied = await fleet.queue().stats(SALES)
    if applied.waiting == 0:
        await waiter.held(10.0)  # a heartbeat comes every 20 s
        if operation == "evict":
            await wait_until(lambda: holder.lost, "the evicted holder knows", 10.0)
    await queue.set_limit(SALES, None)
    for call in (holder, waiter):
        await call.ended()
    await fleet.settled()


async def test_a_limit_that_is_set_again_and_again_leaves_one_key(fleet: Fleet) -> None:
    """Memory does not grow with the number of overrides, and ending them leaves nothing."""
    queue = fleet.queue()
    await queue.set_limit(SALES, 0)
    before = fleet.server.client.keys("*{*")  # the queue's; the index is written when it is
    for limit in range(100):
        await queue.set_limit(SALES, limit)
    assert fleet.server.client.keys("*{*") == before
    await queue.set_limit(SALES, None)
    assert fleet.server.keys_without_expiry() == []


@pytest.mark.slow
async def test_what_is_late_by_more_than_a_lease_changes_nothing(fleet: Fleet) -> None:
    """The instance was reaped and has gone since: its record outlives the lease."""
    proxy = await fleet.proxy()
    queue, other = fleet.queue(proxy.url), fleet.queue()
    await fleet.call(queue, "before").ended()
    relay = proxy.current
    relay.hold()
    call = fleet.call(queue, "call")
    await wait_until(lambda: relay.held_chunks, "the command is on its way")
    proxy.stall()
    await call.failure()
    await asyncio.sleep(LEASE + BEAT)  # that it is late is the subject
    await relay.arrive_late()
    assert (await other.stats(SALES))[:2] == (0, 0)
    proxy.resume()
    await fleet.settled()
