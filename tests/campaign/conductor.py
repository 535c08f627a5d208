"""Runs one campaign: a server, four processes that make calls, random faults, and a final check.

The seed determines all random choices: which faults, on which target, when and for how long, and what
the processes do. The timing on the machine is not repeatable, so a seed does not repeat every step of a
campaign. The saved history records what happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import redis.asyncio
import redis.exceptions
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.exceptions import BackendUnavailableError
from genesis.observability import Telemetry
from tests.campaign.clustered import ClusterScene
from tests.campaign.faults import FAULTS, NONE, Effect, Fault, kinds_of
from tests.campaign.history import History
from tests.campaign.scene import WORKERS, Company, Scene, Station
from tests.campaign.worker import LATE, TICK
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import wait_until

__all__ = [
    "WORKERS",
    "Campaign",
    "Company",
    "Play",
    "Scene",
    "Station",
    "apply",
    "count_faults",
    "finish",
    "on_stage",
    "play",
]

OVERRIDDEN = "team"
# Seconds after the last fault until every call must have ended. The checker judges delays from the
# history; this limit is for calls that never end, and for a busy machine.
PATIENCE = 60.0
# The keys that an empty queue may keep, and for how many seconds: records of instances and of an ended
# override, which reject late commands; kept places and tombstones; the index of queues and instances.
MAY_STAY = {
    "meta": 600 + 660,
    "leases": 600 + 660,
    "override": 600,
    "past": 86400 + 660,
    "queues": 86400 + 660,
    "instances": 86400 + 660,
}


class Play(NamedTuple):
    """The parameters of one campaign."""

    seed: int
    seconds: float
    lease: float
    plant: str = ""
    only: Sequence[str] = ()
    """Kinds of fault to choose from; () for all kinds, ("none",) for no fault."""
    pause: float | None = None
    """Mean number of leases between the starts of two faults; None for a random one."""


class Campaign(NamedTuple):
    """The result of one campaign."""

    play: Play
    history: History
    faults: Counter[str]
    felt: Counter[str]
    """Faults whose effect was seen."""


async def play(company: Company, play: Play) -> Campaign:
    """Run a campaign. Returns its history."""
    rng = random.Random(play.seed)
    with tempfile.TemporaryDirectory(prefix="genesis-campaign-") as name:
        make = ClusterScene if company.cluster is not None else Scene
        scene = await asyncio.to_thread(make, company, Path(name), play.lease, rng, plant=play.plant)
        try:
            async with on_stage(scene) as operator:
                limits = asyncio.create_task(_change_limits(scene, operator, rng))
                await _trouble(scene, play, rng)
                await _end(limits)
                await finish(scene, operator)
        finally:
            scene.end()
        history = scene.history()
    done, felt = count_faults(history)
    return Campaign(play, history, done, felt)


@asynccontextmanager
async def on_stage(scene: Scene) -> AsyncIterator[Queue]:
    """Run the workers, which make calls. Yields an instance that no fault on a worker affects."""
    try:
        async with AsyncExitStack() as stack:
            control = await asyncio.start_unix_server(scene.accept, scene.socket)
            stack.callback(control.close)
            if scene.company.has_clock:
                scene.set_clock(0)
            await scene.measure_clock()
            watch = asyncio.create_task(_watch(scene))
            stack.push_async_callback(_end, watch)
            for name in WORKERS:
                station = Station(scene, name)
                for port in scene.ports:
                    station.proxies.each.append(await stack.enter_async_context(TcpProxy(port)))
                scene.stations.append(station)
            await asyncio.gather(*(station.start() for station in scene.stations))
            telemetry = Telemetry(registry=CollectorRegistry())
            operator = await stack.enter_async_context(Queue(scene.backend(), telemetry=telemetry))
            yield operator
            await scene.measure_clock()
    finally:
        for station in scene.stations:
            if station.alive:
                station.dying = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(station.pid, signal.SIGKILL)
        await scene.close()


async def _trouble(scene: Scene, play: Play, rng: random.Random) -> None:
    """Inject faults until the time is over; at most one at a time per worker and on the server."""
    kinds = _choice(scene, play)
    if not kinds:
        await asyncio.sleep(play.seconds)
        return
    ends = time.monotonic() + play.seconds
    leases = rng.choice((0.1, 0.3, 0.6, 2.0)) if play.pause is None else play.pause  # dense, or sparse
    pause = leases * max(1.0, play.lease)
    server = asyncio.Lock()
    running: set[asyncio.Task[None]] = set()
    bag: list[Fault] = []
    await asyncio.sleep(0.3)  # the start of a campaign is always free of faults
    while time.monotonic() < ends:
        if not bag:
            bag = rng.sample(kinds, len(kinds))
        fault = bag.pop()
        task = asyncio.create_task(_one(scene, fault, server, rng))
        running.add(task)
        task.add_done_callback(running.discard)
        await asyncio.sleep(rng.expovariate(1 / pause))
        for task in [task for task in running if task.done()]:
            task.result()
        # A queue of faults would outlast the campaign.
        while len(running) > 2:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(*running)


def _choice(scene: Scene, play: Play) -> list[Fault]:
    there = kinds_of(scene.clustered)
    kinds = [there[name] for name in play.only or there if name != NONE.name]
    if not scene.company.has_clock:
        kinds = [kind for kind in kinds if kind.name != "clock"]
    return kinds


async def _one(scene: Scene, fault: Fault, server: asyncio.Lock, rng: random.Random) -> None:
    lasts = rng.uniform(*fault.lasts) * scene.lease
    if fault.on != "worker":
        async with server:
            await apply(scene, fault, scene.stations[0], rng, lasts)
        return
    free = [s for s in scene.stations if not s.busy]
    if fault.name == "clock":
        free = [s for s in free if s.name == WORKERS[-1]]
    if not free:
        return
    station = rng.choice(free)
    station.busy = True
    try:
        await apply(scene, fault, station, rng, lasts)
    finally:
        station.busy = False


async def apply(scene: Scene, fault: Fault, station: Station, rng: random.Random, lasts: float) -> None:
    """Inject one fault, keep it for `lasts` seconds, and end it."""
    number = scene.number()
    target = station.name if fault.on == "worker" else ""
    leases, seconds = fault.settle
    settle = leases * scene.lease + seconds
    scene.log("fault", id=number, name=fault.name, target=target, settle=settle)
    effect = Effect()
    async with fault.do(scene, station, effect, rng):
        await asyncio.sleep(lasts)
    scene.log("fault_end", id=number, effect=effect.seen, what=effect.what)


async def _change_limits(scene: Scene, operator: Queue, rng: random.Random) -> None:
    """An operator who sets the limit of one queue repeatedly."""
    while True:
        await asyncio.sleep(rng.expovariate(1.5))
        value = rng.choice((None, None, 0, 1, 2, 4, 5))
        await _set_limit(scene, operator, value)
        if value == 0:
            await asyncio.sleep(rng.uniform(0.05, 0.3))
            await _set_limit(scene, operator, None)


async def _set_limit(scene: Scene, operator: Queue, value: int | None) -> bool:
    number = scene.number()
    scene.log("limit", id=number, queue=OVERRIDDEN, value=value)
    ok = False
    with contextlib.suppress(BackendUnavailableError):
        await operator.set_limit(OVERRIDDEN, value)
        ok = True
    scene.log("limited", id=number, queue=OVERRIDDEN, ok=ok)
    return ok


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel a task until it has ended: redis-py might treat a cancellation as its own timeout."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)


async def _watch(scene: Scene) -> None:
    """Log when the machine is slow, or when the server is slow without a fault."""
    while True:
        before = time.monotonic()
        await asyncio.sleep(TICK)
        if scene.up:
            with contextlib.suppress(redis.exceptions.RedisError, OSError):
                await scene.redis("PING")
        late = time.monotonic() - before - TICK
        if late > LATE and scene.up:
            scene.log("lag", seconds=late)


async def finish(scene: Scene, operator: Queue) -> None:
    """Let all calls end, and check what is left."""

    async def unlimited() -> bool:
        return await _set_limit(scene, operator, None)

    if OVERRIDDEN in scene.queues:
        await wait_until(unlimited, "the override has ended", PATIENCE)
    for station in scene.stations:
        station.tell(do="finish")
    try:
        await wait_until(
            lambda: all(station.said("finished") for station in scene.stations), "", PATIENCE
        )
    except AssertionError:
        for station in scene.stations:
            if not station.said("finished"):
                scene.log("left_over", what=f"{station.who} has calls that do not end")
        return
    await asyncio.gather(*(_forgotten(scene, station) for station in scene.stations))
    for queue in scene.queues:
        await _empty(scene, operator, queue)
    for station in scene.stations:
        await station.close()
    for key in await scene.redis("KEYS", "*"):
        seconds = await scene.redis("TTL", key)
        if not 0 <= seconds <= MAY_STAY.get(key.rpartition(":")[2], 0):
            scene.log("left_over", what=f"{key} expires in {seconds} s")


async def _forgotten(scene: Scene, station: Station) -> None:
    """Check that an instance keeps nothing of ended calls."""
    state: dict[str, str] = {}

    async def empty() -> bool:
        nonlocal state
        station.replies = [reply for reply in station.replies if "state" not in reply]
        state = await station.ask("state", do="state")
        return not state

    try:
        await wait_until(empty, "nothing is kept", PATIENCE)
    except AssertionError:
        scene.log("left_over", what=f"{station.who} keeps {state}")


async def _empty(scene: Scene, operator: Queue, queue: str) -> None:
    """Check that the queue has no waiter and no holder, and that no slot is leaked."""

    async def nobody() -> bool:
        stats = await operator.stats(queue)
        keys = await scene.redis("KEYS", f"genesis:queue:{{{queue}}}:*")
        left = [key for key in keys if key.rpartition(":")[2] not in MAY_STAY]
        return (stats.waiting, stats.in_use, left) == (0, 0, [])

    try:
        await wait_until(nobody, "", PATIENCE)
    except AssertionError:
        stats = await operator.stats(queue)
        entries = await operator.entries(queue)
        keys = await scene.redis("KEYS", f"genesis:queue:{{{queue}}}:*")
        scene.log("left_over", queue=queue, what=f"{queue} has {stats}: {entries}; {keys}")


def count_faults(history: History) -> tuple[Counter[str], Counter[str]]:
    """The number of faults of each kind, and of those whose effect was seen."""
    done: Counter[str] = Counter()
    felt: Counter[str] = Counter()
    begun: dict[int, Any] = {}
    workers = {event.who: event.more["worker"] for event in history.events if event.kind == "up"}
    for event in history.events:
        if event.kind == "fault":
            begun[event.more["id"]] = event
        elif event.kind == "fault_end":
            start = begun[event.more["id"]]
            name, target = start.more["name"], start.more["target"]
            done[name] += 1
            evidence = FAULTS[name].evidence if name in FAULTS else ""
            until = event.at + start.more["settle"]
            shown = evidence and any(
                other.kind == evidence
                and start.at <= other.at <= until
                and target in ("", workers.get(other.who))
                for other in history.events
            )
            felt[name] += bool(event.more["effect"] > 0 or shown)
    return done, felt
