"""Connections that are lost, go silent, or are dropped by the network or closed by the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from genesis.exceptions import BackendUnavailableError
from tests.conftest import LEASE
from tests.support.fleet import AT_ONCE, SALES, Fleet, renewed, seconds
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


async def _busy(fleet: Fleet, break_it: Callable[[], object], times: int) -> None:
    """Many short calls on two instances during repeated faults."""
    queues = [fleet.queue(), fleet.queue()]
    inside = most = done = 0
    tokens: list[int] = []
    broken = 0
    all_slots = asyncio.Event()  # have been taken at once; from then on calls end as soon as they can

    async def call(number: int) -> None:
        nonlocal inside, most, done
        async with queues[number % 2].slot(SALES, item_id=f"call-{number}", max_concurrent=3) as slot:
            inside += 1
            most = max(most, inside)
            tokens.append(slot.fencing_token)
            if inside == 3:
                all_slots.set()
            await all_slots.wait()
            assert not slot.lost
            inside -= 1
        done += 1

    tasks = {asyncio.create_task(call(number)) for number in range(400)}
    pending = tasks
    while pending:
        if broken < times and done > broken * 300 // times:
            broken += 1
            break_it()
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(*tasks)
    assert (done, most, broken) == (400, 3, times)
    assert len(set(tokens)) == 400
    await fleet.settled(3)


async def test_killing_the_connections_under_load_loses_and_doubles_nothing(fleet: Fleet) -> None:
    """CLIENT KILL in the middle of many operations: every call is served once, the limit holds."""
    await _busy(fleet, lambda: fleet.server.client.client_kill_filter(_type="pubsub"), 5)


async def test_script_flush_under_load_loses_and_doubles_nothing(fleet: Fleet) -> None:
    """If a server has lost its scripts, the link reconnects, which loads them."""
    await _busy(fleet, lambda: fleet.server.client.script_flush(), 5)


async def test_a_grant_whose_message_was_lost_with_the_connection_is_found_at_once(
    fleet: Fleet,
) -> None:
    """The next connection begins with a sync, whose reply has the grant."""
    a, b = fleet.queue(lease=60.0), fleet.queue(lease=60.0)
    holder = fleet.call(a, "holder")
    await holder.held()
    (waiter,) = await fleet.waiting(b, "waiter")
    fleet.server.client.client_kill_filter(_type="pubsub")
    await holder.leave()
    await waiter.held(10.0)  # a heartbeat comes every 20 s
    await waiter.leave()
    await fleet.settled()


async def test_without_wake_ups_a_waiter_is_granted_within_one_heartbeat(fleet: Fleet) -> None:
    """Without the right to publish there is no wake-up: the heartbeat finds the grant."""
    url = fleet.add_user()
    fleet.allow("-publish")
    a, b = fleet.queue(url), fleet.queue()
    holder = fleet.call(a, "holder")
    await holder.held()
    (waiter,) = await fleet.waiting(b, "waiter")
    await holder.leave()
    assert await waiter.held() < LEASE
    await waiter.leave()
    await fleet.settled()


async def test_a_server_that_became_a_replica_is_left_and_not_stormed(fleet: Fleet) -> None:
    """After a failover the old master rejects writes: reconnect, but with backoff."""
    queue = fleet.queue()
    call = fleet.call(queue, "call")
    await call.held()
    received = fleet.server.client.info("stats")["total_connections_received"]
    fleet.server.client.replicaof("127.0.0.1", 1)
    try:
        error = await fleet.call(queue, "refused").failure()
        await asyncio.sleep(LEASE / 2)  # the number of tries in it is the subject
        tries = fleet.server.client.info("stats")["total_connections_received"] - received
        reasons = fleet.disruptions()
    finally:
        fleet.server.client.replicaof("NO", "ONE")
    await call.ended()
    assert isinstance(error, BackendUnavailableError)
    assert "read_only" in reasons
    assert tries <= 20
    await fleet.settled()


async def test_a_connection_that_falls_silent_is_replaced(fleet: Fleet) -> None:
    """Replies stop silently: another connection is up within a second."""
    proxy = await fleet.proxy()
    queue = fleet.queue(proxy.url, lease=30.0)  # a reply is waited for up to 10 s
    holder = fleet.call(queue, "holder")
    await holder.held()
    (waiter,) = await fleet.waiting(queue, "waiter")
    relay = proxy.current
    relay.deaf = True
    relay.hold()
    began = time.monotonic()
    await holder.leave()
    assert time.monotonic() - began < AT_ONCE
    await waiter.held(5.0)
    assert proxy.current is not relay
    assert not waiter.lost
    await waiter.leave()
    await fleet.settled()


@pytest.mark.parametrize("waiters", [0, 3])
async def test_a_connection_that_the_network_forgot_costs_the_first_calls_a_second_at_most(
    fleet: Fleet, waiters: int
) -> None:
    """A NAT or a load balancer silently drops all bytes after an idle minute."""
    proxy = await fleet.proxy()
    queue = fleet.queue(proxy.url, lease=60.0, operation_timeout=5.0)
    first = fleet.call(queue, "first", 9)
    await first.held()
    await first.leave()
    for _ in range(2):
        proxy.current.forgotten = True
        calls = [fleet.call(queue, f"call-{number}", 9) for number in range(1 + waiters)]
        for call in calls:
            assert await call.held() < 2.0  # 0.5 s on a quiet machine
        for call in calls:
            await call.leave()
        assert await fleet.call(queue, "next", 9).held() < 0.4
    assert fleet.disruptions() == {}


@pytest.mark.slow
async def test_an_idle_connection_is_tried_before_a_call_needs_it(fleet: Fleet) -> None:
    """A probe every third of a lease: the network drops the connection, and no call is affected."""
    proxy = await fleet.proxy()
    queue = fleet.queue(proxy.url)
    await fleet.call(queue, "first").ended()
    forgotten = proxy.current
    forgotten.forgotten = True
    await wait_until(lambda: proxy.current is not forgotten, "another connection is made", 2 * LEASE)
    await wait_until(lambda: not forgotten.open, "the old one is given up")
    assert await fleet.call(queue, "next").held() < 0.1
    assert fleet.disruptions() == {}


@pytest.fixture
async def impatient(own_redis: RedisServer) -> AsyncIterator[RedisServer]:
    """Closes a connection that was idle for a second, as managed Redis servers do."""
    own_redis.client.config_set("timeout", 1)
    yield own_redis
    own_redis.client.config_set("timeout", 0)


@pytest.mark.slow
@pytest.mark.parametrize("lease", [2.0, 30.0], ids=["probed before", "probed after"])
async def test_a_server_that_closes_idle_connections_raises_no_alarm(
    fleet: Fleet, impatient: RedisServer, lease: float
) -> None:
    """`redis-server --timeout 1` and nobody calling: no disruption, and no delay afterwards."""
    queue = fleet.queue(lease=lease)
    await fleet.call(queue, "first").ended()
    await asyncio.sleep(3.0)  # that nobody calls is the subject
    assert fleet.disruptions() == {}
    took, error = await seconds(fleet.call(queue, "call").ended())
    assert error is None
    assert took < 0.2


async def test_a_connection_that_the_server_closed_is_reopened_at_once(fleet: Fleet) -> None:
    """Closed while idle: no disruption; the call that comes in the same turn waits for it."""
    queue = fleet.queue(lease=30.0)
    await fleet.call(queue, "first").ended()
    for _ in range(2):
        await asyncio.sleep(2.0)  # idle is the subject; the index is written half a second after a call
        fleet.server.client.client_kill_filter(_type="pubsub")
        took, error = await seconds(fleet.call(queue, "call").ended())
        assert error is None
        assert took < 2.0
    assert fleet.disruptions() == {}


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.25, 0.75], ids=["shortly", "for most of the lease"])
async def test_a_paused_redis_costs_nobody_a_slot_or_a_place(fleet: Fleet, share: float) -> None:
    """SIGSTOP of the server for less than the lease: all calls continue."""
    queue = fleet.queue()
    holder = fleet.call(queue, "holder")
    await holder.held()
    calls = await fleet.waiting(queue, "call-1", "call-2")
    await renewed(queue)
    fleet.server.pause()
    await asyncio.sleep(LEASE * share)  # the pause is the subject
    fleet.server.resume()
    await renewed(queue)
    assert not holder.lost
    assert await fleet.order(queue) == ["call-1", "call-2"]
    await holder.leave()
    for call in calls:
        await call.held(2)
        await call.leave()
    await fleet.settled()
