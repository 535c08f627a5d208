"""Which server of a Cluster serves a queue."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode

from genesis.backends.protocol import Disrupted
from genesis.backends.redis import cluster
from genesis.exceptions import BackendUnavailableError
from tests.support.instances import (
    Instances,
    held_at,
    queue_on,
)
from tests.support.load import Load
from tests.support.redis_server import RedisServer
from tests.support.topology import Cluster, cluster_port
from tests.support.waiting import wait_until


async def test_queues_are_spread_over_all_masters_with_one_connection_to_each(
    redis_cluster: Cluster, instances: Instances
) -> None:
    """30 queues: each keeps limit and order; an instance has a connection a master, and one more."""
    before = [server.connections() for server in redis_cluster.servers]
    made = [instances.make(client=redis_cluster.client()) for _ in range(2)]
    names = [f"queue-{number}" for number in range(30)]
    load = Load(made, names, limit=1)
    await load.served(600, "calls come and go")
    connections = [
        server.connections() - others
        for server, others in zip(redis_cluster.servers, before, strict=True)
    ]
    keys = [len(server.client.keys("*")) for server in redis_cluster.servers]
    await load.stop()
    print(f"connections a master {connections}, keys a master {keys}")
    assert (load.failed, load.lost, load.inversions, load.excesses) == ([], 0, 0, [])
    assert all(keys)
    assert sum(connections) <= len(made) * (3 + 1)


async def test_the_order_of_entering_is_kept_by_every_queue(
    redis_cluster: Cluster, instances: Instances
) -> None:
    """Calls that enter queues of all masters in one turn of the loop stand in each in their order."""
    queue = instances.make(client=redis_cluster.client())
    names = [queue_on(redis_cluster, server) for server in redis_cluster.servers]
    entered: dict[str, list[str]] = {name: [] for name in names}

    async def call(name: str, item: str) -> None:
        async with queue.slot(name, item_id=item, max_concurrent=1):
            entered[name].append(item)

    await asyncio.gather(*(call(name, f"{n:03}") for n in range(100) for name in names))
    assert all(items == sorted(items) and len(items) == 100 for items in entered.values())


async def test_a_node_of_a_cluster_given_as_a_url_says_what_to_give_instead(
    redis_cluster: Cluster, instances: Instances
) -> None:
    """A queue served by another node raises an error that names the fix."""
    name = queue_on(redis_cluster, redis_cluster.servers[1])
    queue = instances.make(url=redis_cluster.servers[0].url)
    with pytest.raises(BackendUnavailableError, match="RedisCluster"):
        await queue.stats(name)
    with pytest.raises(BackendUnavailableError, match="RedisCluster"):
        await held_at(queue, name)


async def test_a_server_that_is_no_cluster_is_a_clear_error(
    redis_server: RedisServer, instances: Instances
) -> None:
    """A RedisCluster client for a single server: the error names the cause, in bounded time."""
    client = RedisCluster(host="127.0.0.1", port=redis_server.port)
    queue = instances.make(client=client, operation_timeout=0.5)
    with pytest.raises(BackendUnavailableError, match="cluster support disabled"):
        await queue.stats("sales")


async def test_an_empty_node_among_the_startup_nodes_is_no_outage(
    redis_cluster: Cluster, instances: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that was reset serves no slot and knows no other; the map comes from another node."""
    lone = RedisServer("--cluster-enabled", "yes", port=cluster_port())
    try:
        ports = [lone.port, *(server.port for server in redis_cluster.servers)]
        nodes = [ClusterNode("127.0.0.1", port) for port in ports]
        monkeypatch.setattr(cluster, "_REFRESH_EVERY", 0.02)
        queue = instances.make(client=RedisCluster(startup_nodes=nodes))
        await queue.ping()
        down: Any = queue._backend
        events: list[Any] = []
        down.listen(lambda event: events.append(event) if isinstance(event, Disrupted) else None)
        asked = lone.calls("cluster|slots")
        await wait_until(lambda: lone.calls("cluster|slots") >= asked + 3, "it was asked again")
        assert events == []
    finally:
        lone.close()
