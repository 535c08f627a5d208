"""One process under test: it makes random calls, and logs their events.

The conductor sends it a few commands over a Unix socket, one JSON line each: block the event loop, make
no more calls, report what it still keeps, close.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import select
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from redis.asyncio.cluster import ClusterNode, RedisCluster

from genesis import Queue
from genesis.exceptions import (
    BackendUnavailableError,
    EvictedError,
    QueueFullError,
    QueueTimeoutError,
)
from genesis.observability import Telemetry
from genesis.queue import RedisBackend
from tests.campaign.history import Log
from tests.campaign.plants import plant
from tests.campaign.recorder import Recorder
from tests.conftest import state_of

__all__ = ["QUEUES", "STEADY", "Kind", "run"]

TICK = 0.05  # seconds between two readings of the clock
LATE = 0.02  # seconds of delay from which a reading is logged


class Kind(NamedTuple):
    """How a queue is used. Times are in seconds; holds also in leases."""

    limit: int
    callers: int  # in each process
    think: float
    hold: tuple[float, float]
    hold_leases: float = 0.0
    steady: bool = False  # without timeouts, cancellations and evictions


# Always a waiter in line; every process is served several times a second.
STEADY = {"line": Kind(limit=1, callers=1, think=0.005, hold=(0.01, 0.01), steady=True)}
QUEUES = {
    "solo": Kind(limit=1, callers=2, think=0.25, hold=(0.0, 0.03)),
    "team": Kind(limit=3, callers=3, think=0.2, hold=(0.01, 0.15)),
    # Entering renews a lease too: only here does the lease depend on the heartbeat alone.
    "long": Kind(limit=2, callers=1, think=0.5, hold=(0.1, 0.3), hold_leases=2.5),
}


class KeptPlace(NamedTuple):
    """A place kept by a cancelled call, which any process can take, or try to take again."""

    queue_id: str
    call: str
    token: str


class KeptPlaces:
    """The kept places of a campaign, in a file that all its processes share."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)

    def put(self, place: KeptPlace) -> None:
        os.write(self._file, json.dumps(place).encode() + b"\n")

    def last(self, queue_id: str) -> list[KeptPlace]:
        """The last few places."""
        size = os.fstat(self._file).st_size
        start = max(0, size - 2000)
        lines = os.pread(self._file, size - start, start).split(b"\n")
        # The first line might be incomplete.
        whole = [line for line in lines[1 if start else 0 :] if line]
        places = [KeptPlace(*json.loads(line)) for line in whole]
        return [place for place in places if place.queue_id == queue_id][-4:]


class Caller:
    """Makes the calls of one process."""

    def __init__(
        self,
        queue: Queue,
        lease: float,
        who: str,
        log: Log,
        rng: random.Random,
        places: KeptPlaces,
    ) -> None:
        self._places = places
        self._queue = queue
        self._lease = lease
        self._who = who
        self._log = log
        self._rng = rng
        self._calls = 0
        self._over = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, queues: Mapping[str, Kind]) -> None:
        for queue_id, kind in queues.items():
            for _ in range(kind.callers):
                self._tasks.append(asyncio.create_task(self._call_again(queue_id, kind)))
        restless = [queue_id for queue_id, kind in queues.items() if not kind.steady]
        if restless:
            self._tasks.append(asyncio.create_task(self._evict_some(restless)))

    async def finish(self) -> None:
        """Make no more calls, and wait until the current calls have ended."""
        self._over.set()
        for task in self._tasks:
            await task

    async def _call_again(self, queue_id: str, kind: Kind) -> None:
        while await self._think(self._rng.expovariate(1 / kind.think)):
            self._calls += 1
            call = f"{self._who}:{self._calls}"
            hold = self._rng.uniform(*kind.hold) + self._rng.uniform(0, kind.hold_leases * self._lease)
            options = {} if kind.steady else self._options(queue_id)
            task = asyncio.create_task(self._pass(queue_id, call, kind.limit, hold, options))
            if not kind.steady and self._rng.random() < 0.2:
                await asyncio.sleep(self._rng.choice((0.0, self._rng.uniform(0, 0.2))))
                task.cancel()
            await asyncio.wait({task})  # a task cancelled before its first step never started

    def _options(self, queue_id: str) -> dict[str, Any]:
        """The options of one call: most are plain, others use one or more features."""
        rng = self._rng
        options: dict[str, Any] = {}
        options["timeout"] = rng.choice(
            (None, None, None, 0.0, rng.uniform(0.01, 0.4), 2 * self._lease)
        )
        if rng.random() < 0.2:
            options["max_waiting"] = rng.randrange(4)
        if rng.random() < 0.2:
            options["head_start"] = rng.choice((0.05, 0.5, rng.uniform(0, 3)))
        if rng.random() < 0.5:
            options["keep_place"] = rng.choice((0.2, 3.0, 60.0))
        if rng.random() < 0.2 and (places := self._places.last(queue_id)):
            options["place"] = rng.choice(places)
        return options

    async def _pass(
        self, queue_id: str, call: str, limit: int, hold: float, options: dict[str, Any]
    ) -> None:
        names: dict[str, Any] = {"queue": queue_id, "call": call}
        how = "released"
        begun = False  # a task cancelled before its first step does not reach this
        place: KeptPlace | None = options.pop("place", None)
        timeout = options.get("timeout")
        request = self._queue.slot(
            queue_id,
            item_id=call,
            max_concurrent=limit,
            place_token=None if place is None else place.token,
            **options,
        )
        try:
            features: dict[str, Any] = {"place_of": place.call} if place is not None else {}
            for name in ("head_start", "max_waiting"):
                if name in options:
                    features[name] = options[name]
            self._log("enter", timeout=timeout, **features, **names)
            begun = True
            async with request as slot:
                self._log("grant", token=slot.fencing_token, **names)
                try:
                    await self._hold(hold)
                finally:
                    self._log("leave", lost=slot.lost, **names)
        except QueueTimeoutError:
            how = "timeout" if timeout else "refused"
        except QueueFullError:
            how = "full"
        except EvictedError:
            how = "evicted"
        except BackendUnavailableError:
            how = "failed"
        except asyncio.CancelledError:
            how = "cancelled"
        finally:
            if begun:
                self._log("end", how=how, **names)
            if how == "cancelled" and request.place_token and options.get("keep_place"):
                self._places.put(KeptPlace(queue_id, call, request.place_token))

    async def _hold(self, seconds: float) -> None:
        """Hold for at most `seconds`; shorter when the campaign ends."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._over.wait(), seconds)

    async def _think(self, seconds: float) -> bool:
        await self._hold(seconds)
        return not self._over.is_set()

    async def _evict_some(self, queues: list[str]) -> None:
        while await self._think(self._rng.expovariate(1.0)):
            queue_id = self._rng.choice(queues)
            with contextlib.suppress(BackendUnavailableError):
                entries = await self._queue.entries(queue_id)
                if entries:
                    victim = self._rng.choice(entries).item_id
                    self._log("evict", queue=queue_id, call=victim)
                    count = await self._queue.evict(queue_id, victim)
                    self._log("evicted", queue=queue_id, call=victim, count=count)


async def watch_clocks(log: Log) -> None:
    """Log when the loop is late, and when the wall clock jumps."""
    before = time.monotonic()
    wall = time.time() - before
    while True:
        await asyncio.sleep(TICK)
        now = time.monotonic()
        if now - before > TICK + LATE:
            log("lag", seconds=now - before - TICK)
        shift = time.time() - now - wall
        if abs(shift) > 1:
            log("wall", shift=shift)
            wall += shift
        before = now


def stand_still(seconds: float) -> None:
    """Block the event loop. libfaketime breaks time.sleep."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        select.select([], [], [], left)


def run(config: dict[str, Any]) -> None:
    """The main function of a worker process."""
    if config.get("plant"):
        plant(config["plant"])
    asyncio.run(_run(config))


def make_backend(config: dict[str, Any]) -> RedisBackend:
    """A backend that reaches every server through the worker's proxy."""
    proxies = {int(port): proxy for port, proxy in config["servers"].items()}
    if not config["cluster"]:
        [port] = proxies.values()
        return RedisBackend(f"redis://127.0.0.1:{port}/0", lease=config["lease"])

    def remap(address: tuple[str, int]) -> tuple[str, int]:
        host, port = address
        return host, proxies.get(port, port)

    seeds = [ClusterNode("127.0.0.1", port) for port in proxies.values()]
    client = RedisCluster(startup_nodes=seeds, address_remap=remap)
    return RedisBackend(client=client, lease=config["lease"])


async def _run(config: dict[str, Any]) -> None:
    who, lease = config["who"], config["lease"]
    log = Log(Path(config["folder"]) / f"{who}.log", who)
    recorder = Recorder(make_backend(config), log)
    queue = Queue(recorder, telemetry=Telemetry(registry=CollectorRegistry()))
    recorder.join()
    places = KeptPlaces(Path(config["folder"]) / "places")
    caller = Caller(queue, lease, who, log, random.Random(config["seed"]), places)
    log("up", worker=config["worker"], instance=queue.instance_id)
    clocks = asyncio.create_task(watch_clocks(log))
    reader, writer = await asyncio.open_unix_connection(config["socket"])

    def say(**fields: Any) -> None:
        writer.write(json.dumps(fields).encode() + b"\n")

    say(who=who, pid=os.getpid())
    while True:  # the history starts when the instance is connected
        with contextlib.suppress(BackendUnavailableError):
            await queue.ping()
            break
    caller.start(STEADY if config["steady"] else QUEUES)
    finishing: asyncio.Task[None] | None = None
    while line := await reader.readline():
        command = json.loads(line)
        if command["do"] == "block":
            stand_still(command["seconds"])
        elif command["do"] == "finish":
            finishing = asyncio.create_task(caller.finish())
            finishing.add_done_callback(lambda _: say(finished=True))
        elif command["do"] == "state":
            kept = state_of(queue) | recorder.kept()
            say(state={name: repr(value)[:500] for name, value in kept.items() if value})
        elif command["do"] == "close":
            break
    await queue.close()
    clocks.cancel()
    say(closed=True)
    await writer.drain()
