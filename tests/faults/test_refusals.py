"""A Redis that rejects commands: out of memory, permissions, read-only, busy with a script, loading."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

import pytest
import redis

from genesis import Queue
from genesis.backends.redis.ticket import Command
from genesis.exceptions import BackendUnavailableError, EvictedError
from genesis.queue import RedisBackend
from tests.conftest import LEASE
from tests.support.fleet import BEAT, SALES, Fleet, leave_as_granted, seconds, works_again
from tests.support.redis_server import RedisServer, find_redis_server, server_version
from tests.support.waiting import wait_until

# Out of memory


async def test_an_enter_without_memory_raises_the_servers_error(fleet: Fleet) -> None:
    """noeviction and no memory: BackendUnavailableError at once; afterwards it works."""
    queue = fleet.queue()
    holder = fleet.call(queue, "holder", 2)
    await holder.held()
    fleet.server.client.config_set("maxmemory", "1")
    error = await fleet.call(queue, "call", 2).failure()
    fleet.server.client.config_set("maxmemory", "0")
    assert isinstance(error, BackendUnavailableError)
    assert "maxmemory" in str(error)
    next_one = fleet.call(queue, "next", 2)
    await next_one.held()
    await next_one.leave()
    await holder.leave()
    await fleet.settled()


@pytest.mark.slow
async def test_without_memory_for_longer_than_the_lease_nobody_loses_a_slot(fleet: Fleet) -> None:
    """Renewing a lease needs no memory: the holder keeps its slot, and its leave passes it on."""
    queue = fleet.queue()
    holder = fleet.call(queue, "holder")
    await holder.held()
    (waiter,) = await fleet.waiting(queue, "waiter")
    fleet.server.client.config_set("maxmemory", "1")
    try:
        await asyncio.sleep(LEASE * 1.2)  # that it is longer than the lease is the subject
        lost = holder.lost
        await holder.leave()
        await waiter.held(LEASE)
    finally:
        fleet.server.client.config_set("maxmemory", "0")
    await waiter.leave()
    await fleet.settled()
    assert not lost


async def test_places_and_slots_are_registered_again_without_memory(fleet: Fleet) -> None:
    """The data is lost and Redis is out of memory: a sync still runs."""
    queue, other = fleet.queue(), fleet.queue()
    holder = fleet.call(other, "holder")
    await holder.held()
    (waiter,) = await fleet.waiting(queue, "waiter")
    fleet.server.client.config_set("maxmemory", "1")
    names = ("waiting", "holding", "tickets")
    fleet.server.client.delete(*(f"genesis:queue:{{{SALES}}}:{name}" for name in names))

    async def back() -> bool:
        entries = await other.entries(SALES)
        return [entry.item_id for entry in entries] == ["holder", "waiter"]

    await wait_until(back, "both are registered again", LEASE)
    fleet.server.client.config_set("maxmemory", "0")
    await holder.leave()
    await waiter.held()
    await waiter.leave()
    await fleet.settled()


# Permissions


@pytest.mark.slow
async def test_a_leave_that_was_rejected_is_made_up_for_by_a_sync(fleet: Fleet) -> None:
    """The server forbids scripts for a moment: the slot is free soon after it allows them again."""
    queue, other = fleet.queue(fleet.add_user()), fleet.queue()
    holder = fleet.call(queue, "holder")
    await holder.held()
    fleet.allow("-evalsha")
    await holder.leave()
    client: Any = fleet.server.client
    await wait_until(
        lambda: sum(int(entry["count"]) for entry in client.acl_log()) >= 2, "it was rejected twice"
    )
    fleet.allow("+evalsha")
    call = fleet.call(other, "next")
    assert await call.held() < 2 * BEAT + 0.3
    await call.leave()
    await fleet.settled()


@pytest.mark.slow
async def test_waiters_get_an_error_when_all_is_rejected_for_longer_than_the_lease(
    fleet: Fleet,
) -> None:
    """The connection is up, but every heartbeat is rejected: waiters lose their places, and know it."""
    queue = fleet.queue(fleet.add_user())
    holder = fleet.call(queue, "holder")
    await holder.held()
    (waiter,) = await fleet.waiting(queue, "waiter")
    fleet.allow("-evalsha")
    try:
        await wait_until(lambda: holder.lost, "the holder knows", LEASE + 1)
        await asyncio.wait({waiter.task}, timeout=LEASE)
        ended = waiter.task.done()
    finally:
        fleet.allow("+evalsha")
    await holder.leave()
    error = await waiter.ended()
    await fleet.settled()
    assert ended, "the waiter still waits, a lease after its place was lost"
    assert isinstance(error, BackendUnavailableError)


@pytest.mark.parametrize("rule", ["zadd", "zrem", "publish"])
async def test_an_eviction_that_is_rejected_halfway_runs_or_does_not(fleet: Fleet, rule: str) -> None:
    """The call keeps its place, or learns that it was evicted: it never leaves the line silently."""
    queue, operator = fleet.queue(), fleet.queue(fleet.add_user())
    holder = fleet.call(queue, "holder")
    await holder.held()
    first, second = await fleet.waiting(queue, "first", "second")
    await operator.ping()
    fleet.allow(f"-{rule}")
    with suppress(BackendUnavailableError):
        await operator.evict(SALES, "first")
    order = await fleet.order(queue)
    assert order == ["first", "second"] or isinstance(await first.failure(), EvictedError)
    fleet.allow(f"+{rule}")
    await holder.leave()
    await leave_as_granted([first, second])
    await fleet.settled()


async def test_a_permission_that_is_missing_is_named_at_once(fleet: Fleet) -> None:
    """If Redis rejects an enter, the error repeats Redis's message."""
    queue = fleet.queue(fleet.add_user(), lease=30.0)
    await fleet.call(queue, "before").ended()
    fleet.allow("-evalsha")
    took, error = await seconds(fleet.call(queue, "call").task)
    assert isinstance(error, BackendUnavailableError)
    assert "evalsha" in str(error)
    assert took < 5.0  # a reply is waited for up to 10 s
    fleet.allow("+evalsha")
    assert await works_again(fleet, queue) < 5.0
    await fleet.settled()


@pytest.mark.parametrize("wrong", ["password", "permission"])
async def test_a_denied_login_is_named_without_the_password(fleet: Fleet, wrong: str) -> None:
    """BackendUnavailableError has the server's message, and never the credentials."""
    fleet.server.client.acl_setuser("guest", enabled=True, passwords=["+right"], commands=["+ping"])
    password = "hunter2-wrong" if wrong == "password" else "right"
    queue = fleet.queue(fleet.server.url.replace("//", f"//guest:{password}@"))
    error = await fleet.call(queue, "call").failure()
    assert isinstance(error, BackendUnavailableError)
    text = str(error)
    assert "hunter2" not in text
    assert ("password" in text) if wrong == "password" else ("permission" in text.lower())
    chain: BaseException | None = error
    while chain is not None:
        assert "hunter2" not in str(chain)
        chain = chain.__cause__


# Read-only, paused, busy, loading


async def test_a_redis_that_pauses_writes_is_waited_for_on_one_connection(fleet: Fleet) -> None:
    """CLIENT PAUSE WRITE, as in a fail-over: a second connection does not replace the first."""
    client: Any = fleet.server.client
    queue = fleet.queue(lease=90.0)
    await queue.ping()
    client.execute_command("CLIENT", "PAUSE", "60000", "WRITE")
    setting = asyncio.create_task(queue.set_limit(SALES, 3))

    def both_held_back() -> bool:
        return sum("b" in each["flags"] for each in client.client_list()) == 2

    try:
        await wait_until(both_held_back, "a second connection is tried")
    finally:
        client.execute_command("CLIENT", "UNPAUSE")
    await setting
    await wait_until(lambda: fleet.server.connections() == 1, "the second one is dropped")
    assert fleet.server.calls("subscribe") == 2
    assert fleet.disruptions() == {}
    await queue.set_limit(SALES, None)
    await fleet.settled()


async def test_a_master_that_became_a_read_only_replica_is_an_error_and_then_works(
    fleet: Fleet,
) -> None:
    """READONLY, even from inside a script."""
    queue = fleet.queue()
    await fleet.call(queue, "before").ended()
    fleet.server.client.replicaof("127.0.0.1", 1)
    try:
        took, error = await seconds(fleet.call(queue, "call").task)
    finally:
        fleet.server.client.replicaof("NO", "ONE")
    assert isinstance(error, BackendUnavailableError)
    assert took < BEAT + 2.0
    assert await works_again(fleet, queue) < 3
    await fleet.settled()


def _run_forever(server: Any) -> None:
    killed = suppress(redis.RedisError)
    with killed, redis.Redis(port=server.port, socket_timeout=30) as client:
        client.eval("while true do end", 0)


@pytest.mark.slow
async def test_a_redis_that_is_busy_with_a_script_is_an_error_and_then_works(fleet: Fleet) -> None:
    """BUSY, as a reply, ends no connection and loses no holder; when the script is killed, it works."""
    client: Any = fleet.server.client
    client.config_set("lua-time-limit", 100)
    queue = fleet.queue(lease=10.0, operation_timeout=1.0)
    holder = fleet.call(queue, "holder", 3)
    await holder.held()
    thread = threading.Thread(target=_run_forever, args=(fleet.server,))
    thread.start()
    await wait_until(lambda: _busy(client), "Redis is busy")
    try:
        took, error = await seconds(fleet.call(queue, "call", 3, timeout=1.0).ended())
        for _ in range(3):
            await fleet.call(queue, "again", 3, timeout=0.3).ended()
    finally:
        await wait_until(lambda: _killed(client), "the script is killed")
        thread.join()
    assert isinstance(error, BackendUnavailableError)
    assert took < 3.0
    assert not holder.lost
    await holder.leave()
    assert await works_again(fleet, queue) < 3
    await fleet.settled()


async def test_a_redis_that_is_busy_when_an_instance_starts_is_waited_for(fleet: Fleet) -> None:
    """BUSY, as a reply to the first commands of a connection, is no reason to give up."""
    client: Any = fleet.server.client
    client.config_set("lua-time-limit", 100)
    queue = fleet.queue(lease=60.0)
    thread = threading.Thread(target=_run_forever, args=(fleet.server,))
    thread.start()
    await wait_until(lambda: _busy(client), "Redis is busy")
    try:
        call = fleet.call(queue, "call")
        await wait_until(fleet.disruptions, "an attempt to connect failed")
    finally:
        await wait_until(lambda: _killed(client), "the script is killed")
        thread.join()
    assert fleet.disruptions() == {"refused": 1.0}
    await call.held()
    await call.leave()
    await fleet.settled()


def _busy(client: Any) -> bool:
    try:
        client.ping()
    except redis.RedisError as error:
        return "BUSY" in str(error)
    return False


def _killed(client: Any) -> bool:
    try:
        client.script_kill()
    except redis.RedisError as error:
        return "NOTBUSY" in str(error) or "No scripts" in str(error)
    return False


@pytest.mark.slow
async def test_a_redis_that_loads_its_data_is_waited_for() -> None:
    """LOADING: calls fail in time, and are served when it has loaded; the holder keeps its slot."""
    debug = ("--enable-debug-command", "yes") if server_version(find_redis_server()) >= (7,) else ()
    server = RedisServer(*debug, "--key-load-delay", "0")
    client: Any = server.client
    queue = Queue(RedisBackend(server.url, lease=20.0, operation_timeout=0.5))
    try:
        async with queue.slot(SALES, max_concurrent=2) as slot:
            client.execute_command("DEBUG", "POPULATE", 20_000)
            client.config_set("key-load-delay", 100)  # us a key
            loading = asyncio.create_task(asyncio.to_thread(_reload, server))
            errors = []
            while not loading.done():
                try:
                    async with queue.slot(SALES, max_concurrent=2, timeout=0.4):
                        await asyncio.sleep(0.01)  # the hold
                except BackendUnavailableError as error:
                    errors.append(error)
            await loading
            assert errors
            async with queue.slot(SALES, max_concurrent=2):
                assert (await queue.stats(SALES)).in_use == 2
            assert not slot.lost
        await queue.close()
    finally:
        server.close()


def _reload(server: RedisServer) -> None:
    with redis.Redis(port=server.port, socket_timeout=60) as client:
        client.execute_command("DEBUG", "RELOAD")


# One outage


async def test_a_replica_that_accepts_connections_is_one_outage(fleet: Fleet) -> None:
    """A reconnect is no recovery: `Recovered` follows when a script has run again."""
    queue = fleet.queue()
    holder = fleet.call(queue, "holder")
    await holder.held()
    client: Any = fleet.server.client
    connections = client.info("stats")["total_connections_received"]
    client.replicaof("127.0.0.1", 1)
    await wait_until(
        lambda: client.info("stats")["total_connections_received"] >= connections + 4,
        "it has reconnected several times",
    )
    value = fleet.registry.get_sample_value
    reasons = ("read_only", "connection", "timeout", "idle_closed", "refused", "other")
    labels = [{"backend": "redis", "reason": reason} for reason in reasons]
    counts = [value("genesis_backend_disruptions_total", each) or 0 for each in labels]
    assert counts == [1, 0, 0, 0, 0, 0]
    assert value("genesis_backend_up", {"backend": "redis"}) == 0
    client.replicaof("no", "one")
    await wait_until(lambda: value("genesis_backend_up", {"backend": "redis"}) == 1, "it is up")
    await holder.leave()


async def test_a_late_error_of_a_queue_that_was_dropped_starts_no_outage(fleet: Fleet) -> None:
    """Nothing of that queue will ever run, and end the outage."""
    queue = fleet.queue()
    holder = fleet.call(queue, "holder")
    await holder.held()
    await holder.leave()
    backend: Any = fleet.queues[0]._backend
    driver = backend._inner._driver
    dropped = driver.queues.pop(SALES)
    sync = Command("sync", dropped.session, (), (), driver.loop.time())
    driver.replied(dropped, sync, redis.ResponseError("NOREPLICAS Not enough good replicas to write."))
    assert driver.down == {}


async def test_an_outage_of_a_queue_that_is_only_looked_at_ends_with_a_reply(fleet: Fleet) -> None:
    """This instance has no call in it, so no sync and no heartbeat would end the outage."""
    queue = fleet.queue(lease=60.0)
    await queue.stats(SALES)
    fleet.server.client.script_flush()
    await queue.stats(SALES)
    assert fleet.disruptions() == {"scripts_lost": 1.0}
    assert fleet.registry.get_sample_value("genesis_backend_up", {"backend": "redis"}) == 1
