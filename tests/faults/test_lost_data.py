"""Redis loses its data, or two servers have it: no call is stranded, and the order is kept."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from genesis.exceptions import BackendUnavailableError
from tests.conftest import LEASE
from tests.support.fleet import BEAT, IN_TIME, SALES, Fleet, leave_as_granted, renewed
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


async def test_flushall_strands_nobody_and_keeps_the_order(fleet: Fleet) -> None:
    """One holds and five wait on two instances: grants continue, in order, one at a time."""
    a, b = fleet.queue(), fleet.queue()
    holder = fleet.call(a, "holder")
    await holder.held()
    calls = [(await fleet.waiting(queue, f"call-{n}"))[0] for n, queue in enumerate([b, a, b, b, a])]
    fleet.server.client.flushall()

    async def registered() -> bool:
        return await fleet.order(a) == [call.item for call in calls]

    took = await wait_until(registered, "all have registered again, in order")
    assert took < LEASE
    assert not holder.lost
    await holder.leave()
    last = holder.token
    for index, call in enumerate(calls):
        await call.held(LEASE)
        assert not any(later.holds for later in calls[index + 1 :])
        assert call.token > last
        last = call.token
        await call.leave()
    assert "data_lost" in fleet.disruptions()
    await fleet.settled()


async def test_a_newcomer_after_flushall_does_not_overtake(fleet: Fleet) -> None:
    """An instance that knew the queue prevents all grants until every instance has registered."""
    a, b = fleet.queue(), fleet.queue()
    holder = fleet.call(a, "holder")
    await holder.held()
    (first,) = await fleet.waiting(b, "first")
    fleet.server.client.flushall()
    newcomer = fleet.call(a, "newcomer")
    await fleet.waits(a, "newcomer")

    async def registered() -> bool:
        return await fleet.order(a) == ["first", "newcomer"]

    await wait_until(registered, "the order is the old one")
    assert (await a.stats(SALES)).in_use == 1
    await holder.leave()
    await first.held()
    assert not newcomer.holds
    await first.leave()
    await newcomer.held()
    await newcomer.leave()
    await fleet.settled()


async def test_flushall_keeps_the_order_for_an_instance_far_away(fleet: Fleet) -> None:
    """A round trip of 100 ms: the far instance registers in time to keep its place and its slot."""
    proxy = await fleet.proxy()
    proxy.delay = 0.05
    near, far = fleet.queue(), fleet.queue(proxy.url)
    holder = fleet.call(far, "far-holder")
    await holder.held()
    (first,) = await fleet.waiting(far, "far-first")
    (second,) = await fleet.waiting(near, "near-second")
    await renewed(far)  # its next heartbeat comes a full interval after the loss
    fleet.server.client.flushall()
    newcomer = fleet.call(near, "near-newcomer")

    async def registered() -> bool:
        return await fleet.holders(near) == ["far-holder"]

    await wait_until(registered, "the far holder has registered again")
    overshoot = (await near.stats(SALES)).in_use
    order = await fleet.order(near)
    await holder.leave()
    await leave_as_granted([first, second, newcomer])
    assert overshoot == 1
    assert order == ["far-first", "near-second", "near-newcomer"]
    assert first.token < second.token < newcomer.token
    await fleet.settled()


async def test_watches_of_a_call_that_waits_go_on_after_a_loss_of_data(fleet: Fleet) -> None:
    """By request, and by id through the same instance: quiet until Redis knows the call again."""
    queue = fleet.queue(lease=3.0)
    holder = fleet.call(queue, "holder")
    await holder.held()
    request = queue.slot(SALES, item_id="waiter")
    entering = asyncio.create_task(request.__aenter__())
    watches = [
        request.watch(every=0.05, at_least=0.05),
        queue.watch(SALES, "waiter", every=0.05, at_least=0.05),
    ]
    for watch in watches:
        assert (await anext(watch)).position == 1
    await renewed(queue)  # its next heartbeat comes a full interval after the loss
    fleet.server.client.flushall()
    following = [asyncio.create_task(anext(watch)) for watch in watches]
    with pytest.raises(BackendUnavailableError, match="forgotten"):
        await queue.position(SALES, "waiter")

    def polled() -> bool:
        operation = {"backend": "redis", "operation": "wait_status", "outcome": "unavailable"}
        return fleet.counted("genesis_backend_operation_seconds_count", **operation) >= 3

    await wait_until(polled, "the watches are polled while Redis does not know the call")
    assert not any(reading.done() for reading in following)
    newcomer = fleet.call(queue, "newcomer")  # registers all calls of its instance again
    for reading in following:
        assert (await asyncio.wait_for(reading, 20)).position == 1
    await holder.leave()
    await entering
    for watch in watches:
        assert [status.position async for status in watch] in ([], [1])
    await request.__aexit__(None, None, None)
    await newcomer.held()
    await newcomer.leave()
    await fleet.settled()


@pytest.mark.slow
async def test_redis_killed_and_restarted_empty_strands_nobody(fleet: Fleet) -> None:
    """Down for a second with holders, waiters and newcomers: each is granted or gets the error."""
    a, b = fleet.queue(), fleet.queue()
    holders = [fleet.call(a, "holder-0", 2), fleet.call(b, "holder-1", 2)]
    for call in holders:
        await call.held()
    calls = []
    for number, queue in enumerate([a, b, b, a]):
        calls.append(fleet.call(queue, f"call-{number}", 2))
        await fleet.waits(queue, f"call-{number}")
    fleet.server.kill()
    newcomers = [fleet.call(queue, f"newcomer-{n}", 2) for n, queue in enumerate([a, b] * 3)]
    await asyncio.sleep(1.0)  # the outage is the subject
    fleet.server.start()
    fresh = fleet.queue()

    async def registered() -> bool:
        try:
            return (await fleet.order(fresh))[:4] == [call.item for call in calls]
        except BackendUnavailableError:
            return False

    await wait_until(registered, "the waiters stand in their old order")
    assert (await fresh.stats(SALES)).in_use == 2
    assert not any(call.lost for call in holders)
    for call in holders:
        await call.leave()
    tokens = []
    everybody = [*calls, *newcomers]
    while not all(call.task.done() for call in everybody):
        inside = [call for call in everybody if call.holds]
        assert len(inside) <= 2
        for call in inside:
            tokens.append((call.token, call.item))
            await call.leave()
        await asyncio.sleep(0)
    assert [item for _, item in sorted(tokens)][:4] == [call.item for call in calls]
    errors = [error for call in newcomers if (error := call.task.exception())]
    assert all(isinstance(error, BackendUnavailableError) for error in errors)
    await fleet.settled(2)


@pytest.mark.slow
async def test_an_override_survives_the_loss_of_data(fleet: Fleet) -> None:
    """The number of set_limit is registered again by those who knew it."""
    queue = fleet.queue()
    call = fleet.call(queue, "call")
    await call.held()
    await queue.set_limit(SALES, 3)
    await renewed(queue)
    fleet.server.client.flushall()

    async def back() -> bool:
        return (await queue.stats(SALES)).limit == 3

    await wait_until(back, "the override is in force again", BEAT + 1)
    await queue.set_limit(SALES, None)
    await call.leave()
    await fleet.settled()


@pytest.mark.slow
async def test_an_override_that_was_ended_after_a_loss_of_data_stays_ended(fleet: Fleet) -> None:
    """An instance that still knows the override registers later, and does not restore it."""
    queue, other = fleet.queue(), fleet.queue()
    call = fleet.call(queue, "call")
    await call.held()
    await queue.set_limit(SALES, 3)
    await renewed(queue)
    fleet.server.client.flushall()
    await other.set_limit(SALES, None)

    async def registered() -> bool:
        return await fleet.holders(other) == ["call"]

    await wait_until(registered, "the call is registered again", BEAT + 1)
    assert (await other.stats(SALES)).limit == 1
    await call.leave()
    await fleet.settled()


@pytest.mark.slow
async def test_an_override_that_was_ended_during_a_pause_stays_ended(fleet: Fleet) -> None:
    """Reaped meanwhile, an instance puts its waiter back in the line, but not the old override."""
    proxy = await fleet.proxy()
    other, queue = fleet.queue(), fleet.queue(proxy.url)
    holder = fleet.call(other, "holder")
    await holder.held()
    (waiter,) = await fleet.waiting(queue, "waiter")
    await other.set_limit(SALES, 0)
    await renewed(queue)
    proxy.stall()

    async def reaped() -> bool:
        return await fleet.order(other) == []

    await wait_until(reaped, "the waiter is reaped", IN_TIME)
    await other.set_limit(SALES, None)
    proxy.resume()

    async def connected() -> bool:
        return (await queue.stats(SALES)).limit == 1

    await wait_until(connected, "the limit is the call sites'")
    assert (await other.stats(SALES)).limit == 1
    for call in (holder, waiter):
        await call.ended()
    await fleet.settled()


@pytest.mark.slow
async def test_a_split_brain_ends_when_the_old_master_misses_its_replica(fleet: Fleet) -> None:
    """A master that must have a replica, and lost it, refuses writes: its holders lose their slots.

    Until then both sides grant. That cannot be prevented, only bounded: by min-replicas-max-lag, the
    second in which Redis looks at it, and the lease.
    """
    lag = 2
    fleet.server.client.config_set("min-replicas-max-lag", lag)
    fleet.server.client.config_set("repl-diskless-sync-delay", 0)
    replica = RedisServer()
    try:
        way = await fleet.proxy()
        replica.client.replicaof("127.0.0.1", str(way.port))

        def in_step() -> bool:
            info: Any = fleet.server.client.info("replication")
            return bool(info.get("slave0", {}).get("state") == "online")

        await wait_until(in_step, "the replica follows")
        fleet.server.client.config_set("min-replicas-to-write", 1)
        old, new = fleet.queue(), fleet.queue(replica.url)
        holder = fleet.call(old, "holder")
        await holder.held()
        way.stall()
        split = time.monotonic()
        replica.client.replicaof("NO", "ONE")
        late = fleet.call(old, "late", queue_id="elsewhere")
        await late.held()
        other = fleet.call(new, "other", queue_id="elsewhere")
        await other.held()
        assert not late.lost  # both hold the one slot of a queue: that is the split
        await wait_until(lambda: holder.lost, "the old side's slot is lost", lag + 1 + IN_TIME)
        await wait_until(lambda: late.lost, "the other one as well", lag + 1 + IN_TIME)
        assert time.monotonic() - split < lag + 1 + IN_TIME
        assert not other.lost
        for call in (other, late, holder):
            await call.leave()
        fleet.server.client.config_set("min-replicas-to-write", 0)
        await new.close()
        await fleet.settled()
    finally:
        replica.close()
