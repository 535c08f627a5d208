"""Campaigns against a Redis Cluster of three masters with a replica each, and its faults.

Slots move in a fail-over, planned or not, or because an operator moves them. A node can be isolated
from everybody, and one process can be disconnected from one master.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from redis.asyncio.cluster import RedisCluster

from genesis.queue import RedisBackend
from tests.campaign.faults import BEAT, LAPSE, RECONNECT, RESTORE, Effect, fault
from tests.campaign.scene import Scene, Station, admin_of
from tests.support.redis_server import RedisServer
from tests.support.topology import NODE_TIMEOUT, Cluster, in_step, slot_of

__all__ = ["ClusterScene"]

_MAP = 0.25 + RECONNECT  # seconds until a changed map is read, and the new master connected to


class ClusterScene(Scene):
    """A scene with the company's cluster, which outlives the scene and is empty at its start."""

    clustered = True

    def _prepare(self) -> None:
        assert self.company.cluster is not None
        self.cluster: Cluster = self.company.cluster
        self.servers = self.cluster.servers
        self.ports = [server.port for server in self.servers]
        self._admins = {port: admin_of(port) for port in self.ports}
        self._where: dict[str, int] = {}
        _until_whole(self.cluster)
        for master in self.cluster.masters():
            master.client.flushall()

    def backend(self) -> RedisBackend:
        return RedisBackend(client=RedisCluster(port=self.ports[0], host="127.0.0.1"), lease=self.lease)

    async def redis(self, *words: str) -> Any:
        """Send a command to all masters, or to the one with the key that `KEYS` has found."""
        async with self._asking:
            if words[0] == "TTL":
                return await self._admins[self._where[words[1]]].execute_command(*words)
            found = []
            for server in self.servers:
                if not server.running:
                    continue
                admin = self._admins[server.port]
                if words[0] in ("PING", "TIME"):
                    return await admin.execute_command(*words)
                if (await admin.execute_command("ROLE"))[0] == "master":
                    reply = await admin.execute_command(*words)
                    self._where |= dict.fromkeys(reply, server.port)
                    found += reply
            return found

    async def close(self) -> None:
        for admin in self._admins.values():
            await admin.aclose()
        self.log.close()

    def end(self) -> None:
        _restart(self.cluster)

    def owner(self, rng: random.Random) -> tuple[int, RedisServer]:
        """The slot of one of the queues, and its master."""
        slot = slot_of(rng.choice(sorted(self.queues)))
        return slot, self.cluster.owner(slot)


def _restart(cluster: Cluster) -> None:
    for server in cluster.servers:
        if server.running:
            server.resume()
        else:
            server.start()


def _until_whole(cluster: Cluster) -> None:
    """Wait until all nodes run and every master has an up-to-date replica."""

    def whole() -> bool:
        masters = [server for server in cluster.masters() if cluster.serves(server)]
        others = [server for server in cluster.servers if server not in masters]
        return len(masters) == 3 and all(in_step(server) for server in others)

    _restart(cluster)
    cluster.until(whole, "every master has a replica")


async def _in_thread(scene: Scene, do: Callable[[Cluster], Any]) -> Any:
    assert isinstance(scene, ClusterScene)
    return await asyncio.to_thread(do, scene.cluster)


async def _whole(scene: Scene) -> ClusterScene:
    await _in_thread(scene, _until_whole)
    assert isinstance(scene, ClusterScene)
    return scene


def _replica_of(cluster: Cluster, master: RedisServer) -> RedisServer:
    for server in cluster.running:
        replication: Any = server.client.info("replication")
        if replication["role"] == "slave" and replication["master_port"] == master.port:
            return server
    raise LookupError(f"{master.port} has no replica")


def _until_replaced(cluster: Cluster, slot: int, master: RedisServer) -> None:
    """Wait until every running node except `master` knows another owner of the slot."""
    cluster.until(lambda: cluster.replaced(slot, master), "a replica has taken over")


def _promote(cluster: Cluster, slot: int, master: RedisServer, replica: RedisServer) -> None:
    """Promote the replica, with retries: masters vote only once within two node timeouts."""
    asked = -math.inf

    def replaced() -> bool:
        nonlocal asked
        if time.monotonic() > asked + 2 * NODE_TIMEOUT and not cluster.replaced(slot, master):
            asked = time.monotonic()
            cluster.promote(replica)
        return cluster.replaced(slot, master)

    cluster.until(replaced, "the replica has taken over")


@fault("cluster", (0.1, 0.5), (LAPSE + BEAT, _MAP))
async def _fail_over(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """A replica replaces its live master, by an operator's command."""
    scene = await _whole(scene)
    cluster = scene.cluster
    slot, master = await asyncio.to_thread(scene.owner, rng)
    replica = await asyncio.to_thread(_replica_of, cluster, master)
    await asyncio.to_thread(_promote, cluster, slot, master, replica)
    effect.note(1, "a replica took over")
    yield


@fault("cluster", (0.1, 0.5), (LAPSE + RESTORE, _MAP))
async def _master_killed(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """SIGKILL of a master: its replica takes over, and the node comes back as a replica."""
    scene = await _whole(scene)
    slot, master = await asyncio.to_thread(scene.owner, rng)
    scene.up = False
    with scene.loss():
        async with scene.asking():
            await asyncio.to_thread(master.kill)
        await asyncio.to_thread(_until_replaced, scene.cluster, slot, master)
    effect.note(1, "its replica took over")
    yield
    await asyncio.to_thread(master.start)
    scene.up = True


@fault("cluster", (0.0, 0.0), (LAPSE + RESTORE, _MAP))
async def _node_cut_off(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """SIGSTOP of a master, for less or for more than the time until it is replaced."""
    scene = await _whole(scene)
    slot, master = await asyncio.to_thread(scene.owner, rng)
    scene.up = False
    with scene.loss():
        async with scene.asking():
            master.pause()
        if rng.random() < 0.5:
            await asyncio.sleep(rng.uniform(0.2, 0.8) * NODE_TIMEOUT)  # the fault itself
            effect.note(1, "stopped, and not replaced")
        else:
            await asyncio.to_thread(_until_replaced, scene.cluster, slot, master)
            effect.note(1, "stopped, and replaced")
        yield
        master.resume()
        await _whole(scene)
    scene.up = True


@fault("cluster", (0.0, 0.4), (LAPSE + BEAT, _MAP))
async def _slot_moved(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """The slot of a queue migrates slowly to another master."""
    scene = await _whole(scene)
    cluster = scene.cluster
    slot, source = await asyncio.to_thread(scene.owner, rng)
    others = [master for master in await asyncio.to_thread(cluster.masters) if master is not source]
    target = rng.choice(others)
    await asyncio.to_thread(cluster.begin_move, slot, source, target)
    yield
    moved = 0
    while found := await asyncio.to_thread(cluster.move_keys, slot, source, target):
        moved += found
    await asyncio.to_thread(cluster.end_move, slot, target)
    effect.note(1, f"moved with {moved} keys")


@fault("cluster", (0.2, 1.3), (LAPSE + BEAT, RECONNECT + 0.3))
async def _way_cut_off(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """One process cannot reach one master; everybody else can."""
    assert isinstance(scene, ClusterScene)
    _, master = await asyncio.to_thread(scene.owner, rng)
    station = rng.choice(scene.stations)
    proxy = next(proxy for proxy in station.proxies.each if proxy.target == master.port)
    effect.note(sum(relay.open for relay in proxy.relays), "connections that stand still")
    proxy.stall()
    try:
        yield
    finally:
        proxy.resume()
