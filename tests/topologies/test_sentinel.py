"""Queues behind Sentinels outlive their master."""

from __future__ import annotations

import asyncio
import gc
import inspect
import socket
import time
from functools import partial
from typing import Any

import pytest
from redis.asyncio.sentinel import Sentinel

from genesis import Queue
from genesis.exceptions import BackendUnavailableError
from genesis.queue import RedisBackend
from tests.conftest import assert_nothing_kept
from tests.support.instances import (
    LEASE,
    Instances,
)
from tests.support.load import Load
from tests.support.redis_server import RedisServer
from tests.support.tcp_proxy import TcpProxy
from tests.support.topology import SentinelTrio, in_step
from tests.support.waiting import wait_until


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "replaced"])
async def test_a_sentinel_failover_under_load_loses_no_call(
    trio: SentinelTrio, instances: Instances, how: str
) -> None:
    """The master is killed, or replaced while it is alive: every call is served, none is stuck."""
    load = Load([instances.make(client=trio.client()) for _ in range(3)], ["sales", "support"])
    await load.served(300, "calls come and go")
    old = trio.master
    assert load.excesses == []
    began = time.monotonic()
    if how == "killed":
        old.kill()
    else:
        trio.fail_over()
    await wait_until(lambda: asyncio.to_thread(lambda: trio.master is not old), "a failover", 30)
    named = time.monotonic() - began
    await load.served(300, "calls come and go on the new master", 30)
    new = trio.master
    assert new is not old
    await load.served(300, "they still do")
    gap = load.longest_gap(began)
    for queue in instances.queues:
        assert _is_at(queue, new)
    await load.stop()
    windows = [excess.ended - began for excess in load.excesses]
    print(
        f"{how}: Sentinel named the new master after {named:.2f} s; nobody was let in for {gap:.2f} s; "
        f"{load.done} served, {len(load.failed)} failed, {load.lost} lost, "
        f"{len(load.excesses)} times over the limit, the last until {max(windows, default=0):.2f} s, "
        f"at most {max((e.most for e in load.excesses), default=2)} inside"
    )
    assert (load.failed, load.lost) == ([], 0)
    assert all(end < named + LEASE / 3 + 1.5 for end in windows)
    for queue in instances.queues:
        await assert_nothing_kept(queue)


def _is_at(queue: Queue, server: RedisServer) -> bool:
    """Whether the instance gets its wake-ups from there, so that it sends its commands there, too."""
    return f"genesis:queue:wake:{queue.instance_id}" in server.client.pubsub_channels()


@pytest.mark.slow
async def test_a_sentinel_that_does_not_answer_keeps_nobody_from_the_master(
    trio: SentinelTrio, instances: Instances
) -> None:
    """The first Sentinel in the client's list is a host that swallows connections."""
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        client = trio.client(hole.getsockname(), socket_timeout=60, socket_connect_timeout=60)
        queue = instances.make(client=client, operation_timeout=2.0)
        began = time.monotonic()
        async with queue.slot("sales", max_concurrent=1, timeout=5):
            took = time.monotonic() - began
        print(f"a slot after {took:.2f} s")
        assert took < 2.0
        await queue.close()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("password", "AuthenticationError: "),
        ("host", "ConnectionError: Error -2 connecting to no-such"),
    ],
)
async def test_sentinels_that_deny_are_an_error_at_once(
    trio: SentinelTrio, instances: Instances, wrong: str, reason: str
) -> None:
    """As with a single server: no call waits, and neither do later calls."""
    if wrong == "password":
        client = trio.client(sentinel_kwargs={"username": "nobody", "password": "wrong"})
    else:
        make: Any = Sentinel
        client = make([(f"no-such-host-{n}.invalid", 1) for n in range(2)]).master_for(trio.service)
    queue = instances.make(client=client, lease=60.0, operation_timeout=60.0)
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(BackendUnavailableError) as caught:
            await queue.stats("sales")
        assert time.monotonic() - began < 10.0
        assert f"NoMasterError: no Sentinel names the master: {reason}" in caught.value.cause
        assert "wrong" not in caught.value.cause.replace("WRONGPASS", "")


async def test_a_forced_address_of_the_master_is_no_other_master(
    trio: SentinelTrio, instances: Instances
) -> None:
    """`force_master_ip`, for Sentinels behind a tunnel: they name another host than the client uses."""
    if "force_master_ip" not in inspect.signature(Sentinel).parameters:
        pytest.skip("this redis-py does not have it")
    queue = instances.make(client=trio.client(force_master_ip="localhost"))
    await queue.ping()
    await wait_until(lambda: trio.listeners() == 1, "a Sentinel is listened to")
    router: Any = queue._backend._inner._driver.router  # type: ignore[attr-defined]
    router._ask(router._sentinel_link)
    connection = router._sentinel_link._connection
    await wait_until(lambda: not connection._pending, "it has named the master once more")
    await queue.ping()
    assert router._address == ("localhost", trio.master.port)
    assert instances.disruptions("read_only") == 0


@pytest.mark.slow
async def test_a_backend_that_is_forgotten_leaves_no_connection_to_a_sentinel(
    trio: SentinelTrio,
) -> None:
    """It is collected without a close: the link to a Sentinel ends too."""
    backend: Any = RedisBackend(client=trio.client())
    await backend.ping()
    await wait_until(lambda: trio.listeners() == 1, "a Sentinel is listened to")
    del backend
    gc.collect()
    await wait_until(lambda: trio.listeners() == 0, "no Sentinel is", 5)


@pytest.mark.slow
async def test_a_stale_replica_that_takes_over_strands_nobody(
    own_redis: RedisServer, instances: Instances
) -> None:
    """It lacks the last 200 calls: holders and waiters register again, and continue."""
    async with TcpProxy(own_redis.port) as line, TcpProxy(own_redis.port) as replication:
        replica = RedisServer("--replicaof", "127.0.0.1", str(replication.port))
        try:
            await wait_until(partial(in_step, replica), "in step")
            load = Load([instances.make(url=line.url) for _ in range(3)], ["sales", "support"])
            await load.served(200, "calls come and go")
            replication.relays[-1].deaf = True  # what the master passes on is lost
            await load.served(200, "they still do, and the replica does not hear of it")
            own_redis.kill()
            replica.client.replicaof("NO", "ONE")
            line.target = replica.port
            began = time.monotonic()
            line.cut()
            await load.served(300, "calls come and go on the replica")
            await load.stop()
            windows = [excess.ended - began for excess in load.excesses]
            most = max((excess.most for excess in load.excesses), default=2)
            print(
                f"stale by 200 calls: nobody was let in for {load.longest_gap(began):.2f} s; "
                f"{load.done} served, {len(load.failed)} failed, {load.lost} lost, {len(windows)} "
                f"times over the limit, until {max(windows, default=0):.2f} s, at most {most} inside"
            )
            assert (load.failed, load.lost) == ([], 0)
            assert all(0 <= end < LEASE / 3 + 1.5 for end in windows)
            for queue in instances.queues:
                await assert_nothing_kept(queue)
            assert (await instances.queues[0].stats("sales"))[:2] == (0, 0)
        finally:
            for queue in instances.queues:
                await queue.close()
            replica.close()


def test_a_client_that_leads_to_a_replica_is_refused() -> None:
    """`slave_for` instead of `master_for` would be refused by Redis at the first write."""
    make: Any = Sentinel
    sentinel = make([("127.0.0.1", 1)])
    with pytest.raises(ValueError, match="master_for"):
        RedisBackend(client=sentinel.slave_for("callcentre"))
