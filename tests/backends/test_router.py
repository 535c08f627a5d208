"""Which link serves a key: in a Redis Cluster while slots move and masters fail, and under Sentinel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.exceptions import ResponseError

from genesis.backends.redis.cluster import ClusterRouter, guard_key
from genesis.backends.redis.link import Link, LinkSettings
from genesis.backends.redis.router import Router
from genesis.backends.redis.servers import servers_of
from tests.backends.linked import CHANNEL, GREETING, TIMEOUT, increment
from tests.support.redis_server import RedisServer
from tests.support.topology import Cluster, SentinelTrio, cluster_port, slot_of
from tests.support.waiting import wait_until

PATIENCE = 60.0  # seconds; a Cluster that elects a master serves nobody


class Calls:
    """What a router calls back, and a backend's way of sending through it."""

    def __init__(self) -> None:
        self.ups: list[Link] = []
        self.downs: list[tuple[Link | None, str, str]] = []
        self.pushes: list[tuple[Link, Any]] = []
        self.moves = 0
        self.router: Router

    def settings(self, timeout: float = TIMEOUT) -> LinkSettings:
        return LinkSettings(
            GREETING,
            timeout,
            timeout / 3,
            self.ups.append,
            lambda *what: self.downs.append(what),
            lambda *what: self.pushes.append(what),
            self._moved,
        )

    async def increment(self, queue_id: str) -> int:
        """Until it is done, as the backend does; never sent again on the connection that refused it."""
        key = b"{%s}:counter" % queue_id.encode()
        parts = increment(key, guard_key([key]))
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            link = self.router.link(key)
            reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            if link is not None and link.send(parts, reply.set_result):
                answer = await reply
                if not isinstance(answer, Exception):
                    return int(answer)
                self.router.redirected(key, answer)
            await asyncio.sleep(0.01)  # the rate of calls
        raise AssertionError(f"no answer within {PATIENCE:g} s: {self.router.why_down(key)}")

    def _moved(self) -> None:
        self.moves += 1


@asynccontextmanager
async def routed(cluster: Cluster, timeout: float = TIMEOUT) -> AsyncIterator[Calls]:
    calls = Calls()
    client = cluster.client()
    calls.router = ClusterRouter(client.nodes_manager, calls.settings(timeout))
    try:
        yield calls
    finally:
        await calls.router.close(1.0)
        await client.aclose()
        assert asyncio.all_tasks() <= {asyncio.current_task()}, "the router left a task behind"


def queue_at(cluster: Cluster, server: RedisServer) -> str:
    return next(f"q{n}" for n in range(1000) if cluster.owner(slot_of(f"q{n}")) is server)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(replicas=1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def trio() -> Iterator[SentinelTrio]:
    made = SentinelTrio()
    yield made
    made.close()


async def test_a_single_server_serves_every_key(own_redis: RedisServer) -> None:
    calls = Calls()
    calls.router = servers_of(own_redis.url, None)[1](calls.settings())
    assert await calls.increment("a") == 1
    assert await calls.increment("b") == 1
    assert own_redis.connections() == 1
    assert not calls.router.redirected(b"a", RuntimeError("MOVED 1 127.0.0.1:1"))
    assert (calls.router.why_down(b"a"), calls.router.denied(b"a")) == ("", False)
    await calls.router.close(1.0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_the_guard_key_is_in_the_slot_of_the_queue() -> None:
    assert guard_key([b"genesis:queue:{a%7Db}:meta"]) == b"genesis:queue:{a%7Db}:never"


# Cluster


async def test_each_master_in_use_has_one_connection(cluster: Cluster) -> None:
    async with routed(cluster) as calls:
        masters = cluster.masters()
        queues = [queue_at(cluster, master) for master in masters]
        for _ in range(3):
            await asyncio.gather(*(calls.increment(queue) for queue in queues[:2]))
        assert len(list(calls.router.links())) == 2
        await calls.increment(queues[2])
        assert len(calls.ups) == 3
        assert calls.moves == 1  # the map was read
        assert calls.downs == []


async def test_wake_ups_come_from_every_node(cluster: Cluster) -> None:
    async with routed(cluster) as calls:
        queues = [queue_at(cluster, master) for master in cluster.masters()]
        await asyncio.gather(*(calls.increment(queue) for queue in queues))
        cluster.masters()[0].client.publish(CHANNEL.decode(), "hello")
        await wait_until(lambda: len(calls.pushes) == 3, "each link has it")
        assert {link for link, _ in calls.pushes} == set(calls.router.links())


async def test_a_slot_that_moves_is_found_again_and_no_command_runs_twice(
    cluster: Cluster,
) -> None:
    source, target = cluster.masters()[:2]
    queue = queue_at(cluster, source)
    async with routed(cluster) as calls:
        counts = [await calls.increment(queue)]
        moving = asyncio.ensure_future(asyncio.to_thread(cluster.move, slot_of(queue), target))
        while not moving.done() or len(counts) < 100:
            counts.append(await calls.increment(queue))
        await moving
        counts.append(await calls.increment(queue))
        assert counts == list(range(counts[0], counts[0] + len(counts)))
        link = calls.router.link(b"{%s}:counter" % queue.encode())
        assert link is not None
        assert _port_of(link) == target.port
        assert calls.downs == []
    cluster.move(slot_of(queue), source)


async def test_scripts_are_refused_whole_while_their_slot_migrates(cluster: Cluster) -> None:
    source, target = cluster.masters()[:2]
    queue = queue_at(cluster, source)
    slot, key = slot_of(queue), b"{%s}:counter" % queue.encode()
    async with routed(cluster) as calls:
        before = await calls.increment(queue)
        cluster.begin_move(slot, source, target)
        link = calls.router.link(key)
        assert link is not None
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        link.send(increment(key, guard_key([key])), reply.set_result)
        error = await reply
        assert str(error).startswith(("ASK", "TRYAGAIN"))
        assert calls.router.redirected(key, error)
        assert calls.router.link(key) is link  # nothing follows ASK
        waiting = asyncio.ensure_future(calls.increment(queue))
        cluster.move_keys(slot, source, target)
        cluster.end_move(slot, target)
        assert await waiting == before + 1
    cluster.move(slot, source)


async def test_the_map_is_read_again_after_a_move(cluster: Cluster) -> None:
    source, target = cluster.masters()[:2]
    queue = queue_at(cluster, source)
    others = [f"o{n}" for n in range(3000)]
    other = next(
        o for o in others if cluster.owner(slot_of(o)) is source and slot_of(o) != slot_of(queue)
    )
    async with routed(cluster) as calls:
        await calls.increment(queue)
        moves = calls.moves
        cluster.move(slot_of(queue), target)
        cluster.move(slot_of(other), target)
        await calls.increment(queue)  # is told that it has moved
        await wait_until(lambda: calls.moves > moves, "the whole map was read again")
        link = calls.router.link(b"{%s}:counter" % other.encode())
        assert link is calls.router.link(b"{%s}:counter" % queue.encode())
    cluster.move(slot_of(queue), source)
    cluster.move(slot_of(other), source)


async def test_an_outdated_map_that_names_a_silent_node_is_read_again(
    cluster: Cluster, own_redis: RedisServer
) -> None:
    """A node that has not yet heard of a fail-over names the old master, which accepts connections."""
    queue = queue_at(cluster, cluster.masters()[0])
    async with routed(cluster, timeout=10.0) as calls:
        await wait_until(lambda: calls.moves, "the map was read")
        router: Any = calls.router
        router._owners[slot_of(queue)] = ("127.0.0.1", own_redis.port)
        own_redis.pause()
        began = time.monotonic()
        assert await calls.increment(queue) > 0
        assert time.monotonic() - began < 5.0  # a connection is waited for up to 10 s


@pytest.mark.parametrize("how", ["killed", "stands still"])
async def test_a_master_that_fails_is_replaced_by_its_replica(how: str) -> None:
    cluster = Cluster(replicas=1)
    try:
        lost = cluster.masters()[0]
        queue, neighbour = queue_at(cluster, lost), queue_at(cluster, cluster.masters()[1])
        async with routed(cluster, timeout=10.0) as calls:
            await calls.increment(queue)
            await calls.increment(neighbour)
            old = calls.router.link(b"{%s}:counter" % queue.encode())
            began = time.monotonic()
            if how == "killed":
                lost.kill()
            else:
                lost.pause()
            waiting = asyncio.ensure_future(calls.increment(queue))
            # The time of an election is Redis's own: a lost vote costs it four seconds.
            replaced = asyncio.ensure_future(asyncio.to_thread(_until_replaced, cluster, queue, lost))
            while not replaced.done():
                await calls.increment(neighbour)  # goes on
                await asyncio.sleep(0.01)  # the rate of calls
            await replaced
            named = time.monotonic()
            assert await waiting in (1, 2)
            served = time.monotonic()
            print(f"{how}: replaced after {named - began:.2f} s, served {served - named:.2f} s later")
            assert served - named < 5.0  # a reply is waited for up to 10 s
            assert old is not None
            assert old not in list(calls.router.links())
    finally:
        cluster.close()


def _until_replaced(cluster: Cluster, queue: str, lost: RedisServer) -> None:
    cluster.until(lambda: cluster.replaced(slot_of(queue), lost), "another node serves the slot")


async def test_without_any_node_the_error_names_it_and_it_recovers(own_redis: RedisServer) -> None:
    port = cluster_port()
    calls = Calls()
    client = Cluster.client(_only(port))
    calls.router = ClusterRouter(client.nodes_manager, calls.settings())
    await wait_until(lambda: calls.downs, "the map was not read")
    assert calls.downs[0][0] is None
    assert "the map of slots" in calls.router.why_down(b"{a}")
    assert not calls.router.denied(b"{a}")
    server = RedisServer("--cluster-enabled", "yes", port=port)
    try:
        everything: Any = server.client
        everything.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
        assert await calls.increment("a") == 1
        assert calls.moves == 1
        await calls.router.close(1.0)
        await client.aclose()
    finally:
        server.close()


def _only(port: int) -> Any:
    class One:
        _client_options: dict[str, Any] = {}  # noqa: RUF012
        servers = (type("Server", (), {"port": port}),)

    return One()


async def test_a_cancellation_of_all_tasks_ends_no_look(cluster: Cluster) -> None:
    async with routed(cluster) as calls:
        await asyncio.sleep(0)  # the look has begun
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()
        assert await calls.increment("a") > 0


# Sentinel


async def test_a_master_that_is_replaced_while_it_lives_is_left_at_once(trio: SentinelTrio) -> None:
    calls = Calls()
    client = trio.client()
    calls.router = servers_of("", client)[1](calls.settings())
    link = next(iter(calls.router.links()))
    await wait_until(lambda: link.up, "the link is up")
    router: Any = calls.router
    await wait_until(lambda: router._sentinel_link.up, "the link to a Sentinel is up")
    old = trio.master
    await wait_until(lambda: _fails_over(trio), "the Sentinels fail over", 40.0)
    began = time.monotonic()
    await wait_until(lambda: trio.master is not old, "the Sentinels name another master")
    named = time.monotonic()
    await wait_until(lambda: _leads_elsewhere(link, old.port), "the new master is connected", 5.0)
    print(f"named after {named - began:.2f} s, connected {time.monotonic() - named:.2f} s later")
    assert await calls.increment("a") > 0
    assert list(calls.router.links()) == [link]
    await calls.router.close(1.0)
    await client.connection_pool.sentinel_manager.sentinels[0].aclose()  # type: ignore[attr-defined]
    await client.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_user_that_may_not_subscribe_to_a_sentinel_reaches_the_master(
    trio: SentinelTrio,
) -> None:
    """Only the early notice of a new master is missing."""
    for port in trio.ports:
        with trio._client(port) as asked:
            asked.execute_command("ACL SETUSER asks on >x ~* +@all -subscribe")
    calls = Calls()
    client = trio.client(sentinel_kwargs={"username": "asks", "password": "x"})
    calls.router = servers_of("", client)[1](calls.settings())
    assert await calls.increment("a") > 0
    router: Any = calls.router
    assert router._sentinel_link.up
    assert trio.listeners() == 0
    await calls.router.close(1.0)
    await client.aclose()


def _fails_over(trio: SentinelTrio) -> bool:
    try:
        trio.fail_over()
    except ResponseError:  # the last fail-over is not over yet
        return False
    return True


def _leads_elsewhere(link: Link, port: int) -> bool:
    return _port_of(link) not in (None, port)


def _port_of(link: Link) -> int | None:
    """The server's."""
    if not link.up or link._connection is None:
        return None
    port: int = link._connection._transport.get_extra_info("peername")[1]
    return port
