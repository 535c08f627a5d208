"""Several instances that share a queue: each sees the effects of the others."""

from __future__ import annotations

from genesis.exceptions import EvictedError
from tests.support.fleet import SALES, Fleet
from tests.support.waiting import wait_until


async def test_in_a_rolling_deployment_the_last_limit_wins_and_is_counted(fleet: Fleet) -> None:
    """Two instances name two limits: no call is dropped, the disagreement is counted."""
    old, new = fleet.queue(), fleet.queue()
    calls = [fleet.call(old, "old", 1)]
    await calls[0].held()
    calls.append(fleet.call(new, "new", 3))
    await calls[1].held()
    assert (await old.stats(SALES)).limit == 3
    assert fleet.counted("genesis_queue_limit_disagreements_total", queue=SALES) == 1
    calls.append(fleet.call(new, "new-2", 3))
    await calls[2].held()
    for call in calls:
        await call.leave()
    await fleet.settled(3)


async def test_set_limit_elsewhere_grants_to_waiters_here_at_once(fleet: Fleet) -> None:
    """Raised by another instance: the waiters are woken, not found by a heartbeat."""
    here, there = fleet.queue(lease=60.0), fleet.queue(lease=60.0)
    holder = fleet.call(here, "holder")
    await holder.held()
    calls = await fleet.waiting(here, "call-1", "call-2", "call-3")
    await there.set_limit(SALES, 3)
    await calls[1].held(10.0)  # a heartbeat comes every 20 s
    assert calls[0].holds
    assert not calls[2].holds
    await there.set_limit(SALES, None)
    await holder.leave()
    for call in calls:
        await call.held()
        await call.leave()
    await fleet.settled()


async def test_eviction_from_elsewhere_ends_a_wait_and_a_hold_here(fleet: Fleet) -> None:
    """A waiter gets EvictedError, a holder's slot.lost turns true, and the next is granted."""
    here, there = fleet.queue(lease=60.0), fleet.queue(lease=60.0)  # a heartbeat comes every 20 s
    holder = fleet.call(here, "holder")
    await holder.held()
    calls = await fleet.waiting(here, "call-1", "call-2")
    assert await there.evict(SALES, "call-1") == 1
    assert isinstance(await calls[0].failure(10.0), EvictedError)
    assert await there.evict(SALES, "holder") == 1
    await wait_until(lambda: holder.lost, "the evicted holder knows", 10.0)
    await calls[1].held(10.0)
    await holder.leave()
    assert calls[1].holds
    assert not calls[1].lost
    await calls[1].leave()
    await fleet.settled()


async def test_entries_show_who_is_on_which_instance(fleet: Fleet) -> None:
    """Holder and waiter of two instances, with their instance ids."""
    a, b = fleet.queue(), fleet.queue()
    holder = fleet.call(a, "holder")
    await holder.held()
    (waiter,) = await fleet.waiting(b, "waiter")
    found = [(e.item_id, e.instance_id, e.state, e.position) for e in await b.entries(SALES)]
    assert found == [
        ("holder", a.instance_id, "holding", None),
        ("waiter", b.instance_id, "waiting", 1),
    ]
    await holder.leave()
    await waiter.held()
    await waiter.leave()
    await fleet.settled()
