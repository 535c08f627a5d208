"""The faults of a campaign. Each is injected, ended, and checked for its effect.

A fault is an async context manager: entering it starts the fault, and leaving it ends the fault, so a
campaign can choose its duration. `Effect.seen` is a measure of the effect, 0 if there was none.
`settle` is the time after its end during which the README allows an effect; the checker allows it too.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.campaign.scene import Scene, Station

__all__ = [
    "BEAT",
    "FAULTS",
    "LAPSE",
    "RESTORE",
    "NONE",
    "RECONNECT",
    "Effect",
    "Fault",
    "fault",
    "kinds_of",
]

RECONNECT = 1.0  # maximum seconds between two attempts to connect (`link.backoff`)


class Effect:
    """The effect of a fault, as seen from outside the workers."""

    def __init__(self) -> None:
        self.seen = 0
        self.what = ""

    def note(self, seen: int, what: str) -> None:
        self.seen, self.what = seen, what


Troubled = Callable[["Scene", "Station", Effect, random.Random], AbstractAsyncContextManager[None]]


class Fault(NamedTuple):
    """One kind.

    Attributes:
        on: "worker", "server" (a single one), or "cluster".
        lasts: its duration, in leases.
        settle: (in leases, in seconds) after its end, see the module docstring.
        evidence: the kind of event by which the workers show the effect, if the fault itself cannot.
    """

    name: str
    on: str
    do: Troubled
    lasts: tuple[float, float]
    settle: tuple[float, float]
    evidence: str = ""


def fault(
    on: str, lasts: tuple[float, float], settle: tuple[float, float], evidence: str = ""
) -> Callable[[Callable[..., AsyncIterator[None]]], Callable[..., AsyncIterator[None]]]:
    def register(do: Callable[..., AsyncIterator[None]]) -> Callable[..., AsyncIterator[None]]:
        name = do.__name__.strip("_").replace("_", "-")
        FAULTS[name] = Fault(name, on, asynccontextmanager(do), lasts, settle, evidence)
        return do

    return register


FAULTS: dict[str, Fault] = {}

# In leases: a lease lapses; a heartbeat comes; data is registered again and the window ends.
LAPSE, BEAT, RESTORE = 1.0, 1 / 3, 1 / 3 + 1 / 2


# Processes


@fault("worker", (0.1, 0.5), (LAPSE, 0.3))
async def _kill(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """SIGKILL; another process replaces it a little later."""
    await station.kill()
    effect.note(1, "its socket was closed by the kernel")
    yield
    await station.start()


@fault("worker", (1.1, 1.8), (LAPSE, 0.3))
async def _stop(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """SIGSTOP for longer than the lease, then SIGCONT."""
    station.stop()
    await wait_until(lambda: station.state() == "T", "the process is stopped")
    effect.note(1, "state T in /proc")
    yield
    station.carry_on()


@fault("worker", (0.0, 0.0), (LAPSE, 0.3), "lag")
async def _block(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """Block its event loop, for less or for more than the lease."""
    seconds = scene.lease * rng.uniform(0.3, 1.6)
    station.tell(do="block", seconds=seconds)
    yield
    await asyncio.sleep(seconds)


@fault("worker", (0.1, 0.5), (0.0, 0.1), "wall")
async def _clock(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """Shift its wall clock by hours, and back."""
    scene.set_clock(rng.choice((-86400, -3600, 3600, 86400)))
    yield
    scene.set_clock(0)


# The connection of one worker, through its proxy


@fault("worker", (0.0, 0.1), (0.0, 0.3))
async def _cut(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """Close its connection; bytes in flight are lost in both directions."""
    effect.note(station.cut(), "connections broken")
    yield


@fault("worker", (0.1, 0.5), (0.0, RECONNECT + 0.3))
async def _refuse(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """Close its connection, and refuse new ones for a while."""
    station.proxies.refuse(True)
    effect.note(station.cut(), "connections broken")
    try:
        yield
    finally:
        station.proxies.refuse(False)


@fault("worker", (0.1, 0.9), (0.0, 0.3))
async def _requests_lost(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """Hold its commands, then close the connection; the commands arrive late or never."""
    relays = station.relays()
    for relay in relays:
        relay.hold()
    yield
    effect.note(sum(relay.held_chunks for relay in relays), "chunks kept from Redis")
    for relay in relays:
        relay.cut()
    if rng.random() < 0.5:
        await asyncio.sleep(rng.uniform(0, 0.5) * scene.lease)
        for relay in relays:
            relay.release()


@fault("worker", (0.05, 0.3), (0.0, 0.3))
async def _replies_lost(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """Redis runs its commands, but the replies are lost with the connection."""
    relays = station.relays()
    before = sum(relay.answers for relay in relays)
    for relay in relays:
        relay.deaf = True
    yield
    effect.note(sum(relay.answers for relay in relays) - before, "bytes of answers lost")
    for relay in relays:
        relay.cut()


@fault("worker", (0.6, 1.0), (1 / 2, 0.3))
async def _half_open(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """Drop all bytes silently in both directions. New connections work."""
    before = len(station.proxies.relays)
    for relay in station.relays():
        relay.hold()
        relay.deaf = True
    yield
    effect.note(len(station.proxies.relays) - before, "connections made instead")


@fault("worker", (0.2, 0.6), (0.0, 0.3))
async def _stall(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """Hold all bytes for a while, then deliver them late."""
    relays = station.relays()
    for relay in relays:
        relay.hold()
    try:
        yield
    finally:
        effect.note(sum(relay.held_chunks for relay in relays), "chunks delivered late")
        for relay in relays:
            relay.release()


@fault("worker", (0.3, 1.5), (0.0, 0.3))
async def _slow(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """Delay every chunk by up to a twentieth of the lease, in each direction."""
    station.proxies.delay(scene.lease * rng.uniform(0.01, 0.05))
    before = sum(relay.answers for relay in station.relays())
    try:
        yield
    finally:
        effect.note(sum(relay.answers for relay in station.relays()) - before, "bytes answered slowly")
        station.proxies.delay(0.0)


# The server


@fault("server", (0.0, 0.1), (0.0, 0.3))
async def _client_kill(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """CLIENT KILL of all connections; those with a subscription have the type pubsub."""
    killed = 0
    for kind in ("normal", "pubsub"):
        killed += int(await scene.redis("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"))
    effect.note(killed, "clients killed")
    yield


@fault("server", (0.0, 0.1), (0.0, 0.3))
async def _script_flush(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """SCRIPT FLUSH: Redis forgets the scripts."""
    before = await scene.info("memory", "number_of_cached_scripts")
    await scene.redis("SCRIPT", "FLUSH")
    effect.note(before, "scripts forgotten")
    yield


@fault("server", (0.0, 0.1), (RESTORE, 0.3))
async def _flushall(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """FLUSHALL: all keys are deleted."""
    before = int(await scene.redis("DBSIZE"))
    with scene.loss(everything=True):
        await scene.redis("FLUSHALL")
    effect.note(before, "keys gone")
    yield


@fault("server", (0.05, 0.5), (RESTORE + LAPSE, RECONNECT + 0.3))
async def _restart_empty(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """Kill the server; it comes back later, without data."""
    before = int(await scene.redis("DBSIZE"))
    with scene.loss(everything=True):
        await scene.server_down()
        effect.note(before, "keys gone")
        yield
        await scene.server_up(keep=False)


async def _loaded(scene: Scene) -> int:
    """The number of keys loaded at the start; before 7.0, the current number."""
    return await scene.info("persistence", "rdb_last_load_keys_loaded") or int(
        await scene.redis("DBSIZE")
    )


@fault("server", (0.05, 0.5), (BEAT + LAPSE, RECONNECT + 0.3))
async def _restart_with_data(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """The server saves and stops; it comes back later with all its data."""
    await scene.server_down(save=True)
    yield
    await scene.server_up(keep=True)
    effect.note(await _loaded(scene), "keys there again")


@fault("server", (0.05, 0.5), (RESTORE + LAPSE, RECONNECT + 0.3))
async def _restart_stale(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """The server comes back with older data, like a replica that lagged behind."""
    await scene.redis("SAVE")
    await asyncio.sleep(rng.uniform(0.05, 0.5) * scene.lease)
    with scene.loss():
        lost = await scene.info("persistence", "rdb_changes_since_last_save")
        await scene.server_down()
        yield
        await scene.server_up(keep=True)
    effect.note(min(lost, await _loaded(scene)), "changes lost, of a state that came back")


@fault("server", (0.1, 1.3), (LAPSE + BEAT, RECONNECT + 0.3), "disrupted")
async def _server_paused(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """SIGSTOP of the server, for less or for more than the lease."""
    await scene.pause()
    try:
        yield
    finally:
        await scene.resume()


@fault("server", (0.1, 1.3), (LAPSE + BEAT, 0.3))
async def _oom(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """Out of memory: Redis rejects every command that uses memory."""
    async with scene.refusals("OOM", effect):
        await scene.redis("CONFIG", "SET", "maxmemory", "1")
        try:
            yield
        finally:
            await scene.redis("CONFIG", "SET", "maxmemory", "0")


@fault("server", (0.1, 1.3), (LAPSE + BEAT, RECONNECT + 0.3))
async def _readonly(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """The server is a replica for a while, and rejects writes."""
    async with scene.refusals("READONLY", effect):
        await scene.redis("REPLICAOF", "127.0.0.1", str(scene.nowhere))
        try:
            yield
        finally:
            await scene.redis("REPLICAOF", "NO", "ONE")


@fault("server", (0.1, 1.3), (LAPSE + BEAT, 0.3))
async def _no_replicas(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """The server requires a replica for writes, and has none."""
    async with scene.refusals("NOREPLICAS", effect):
        await scene.redis("CONFIG", "SET", "min-replicas-to-write", "1")
        try:
            yield
        finally:
            await scene.redis("CONFIG", "SET", "min-replicas-to-write", "0")


@fault("server", (0.1, 1.3), (LAPSE + BEAT, RECONNECT + 0.3))
async def _acl_denial(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    """The user must not run scripts, or not publish, or not write, for a while."""
    rule = rng.choice(("-evalsha", "-publish", "-zadd"))
    await scene.redis("ACL", "LOG", "RESET")
    await scene.redis("ACL", "SETUSER", "default", rule)
    try:
        yield
    finally:
        await scene.redis("ACL", "SETUSER", "default", "+@all")
    denied = sum(int(entry["count"]) for entry in await scene.redis("ACL", "LOG"))
    effect.note(denied, f"commands denied with {rule}")


@asynccontextmanager
async def _nothing(
    scene: Scene, station: Station, effect: Effect, rng: random.Random
) -> AsyncIterator[None]:
    effect.note(1, "")
    yield


NONE = Fault("none", "server", _nothing, (0.0, 0.0), (0.0, 0.0))  # a baseline without a fault


def kinds_of(cluster: bool) -> dict[str, Fault]:
    """All kinds of fault for a single server, or for a cluster."""
    other = "server" if cluster else "cluster"
    return {name: kind for name, kind in FAULTS.items() if kind.on != other}
