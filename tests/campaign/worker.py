"""One process under test: it makes calls, by itself and at random, and logs what becomes of them.

The conductor tells it little, over a Unix socket, one JSON line at a time: to stand still, to make no
more calls, to say what it still keeps, to close.
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

from genesis import Queue
from genesis.backends.protocol import (
    BackendEvent,
    Disrupted,
    EnterRequest,
    EnterResult,
    Grant,
    LeaveResult,
    Listener,
    QueueEntry,
    QueueStats,
    SlotLost,
    Ticket,
)
from genesis.backends.redis.ledger import Line, Stage
from genesis.backends.redis.link import Unreachable
from genesis.exceptions import BackendUnavailableError, EvictedError, QueueTimeoutError
from genesis.observability import Telemetry
from genesis.queue import RedisBackend
from tests.campaign.history import Log
from tests.campaign.plants import plant
from tests.conftest import state_of

__all__ = ["QUEUES", "STEADY", "Kind", "run"]

TICK = 0.05  # seconds between two looks at the clock
LATE = 0.02  # seconds from which on a late look is logged


class Kind(NamedTuple):
    """How a queue is used. Times in seconds, those of holding also in leases."""

    limit: int
    callers: int  # in each process
    think: float
    hold: tuple[float, float]
    hold_leases: float = 0.0
    steady: bool = False  # without timeouts, cancellations and evictions


# Always somebody in line, and every process has its turn several times a second.
STEADY = {"line": Kind(limit=1, callers=1, think=0.005, hold=(0.01, 0.01), steady=True)}
QUEUES = {
    "solo": Kind(limit=1, callers=2, think=0.25, hold=(0.0, 0.03)),
    "team": Kind(limit=3, callers=3, think=0.2, hold=(0.01, 0.15)),
    # A lease is renewed by every entering, too: only here does it hang on the heartbeat alone.
    "long": Kind(limit=2, callers=1, think=0.5, hold=(0.1, 0.3), hold_leases=2.5),
}


class Recorder:
    """Passes every operation on to the backend, and logs what the calls cannot see."""

    def __init__(self, inner: RedisBackend, log: Log) -> None:
        self._inner = inner
        self._log = log
        self._granted: set[str] = set()
        self.name = inner.name
        self.instance_id = inner.instance_id
        self.heartbeat_interval = inner.heartbeat_interval

    def join(self) -> None:
        """Watch the heartbeats; the loop must run."""
        heart = self._inner._join("join").heart
        on_beat, on_restored = heart._on_beat, heart._on_restored

        def beat(line: Line, sent: float, renewed: bool, last: bool, reply: Any) -> None:
            on_beat(line, sent, renewed, last, reply)
            if not isinstance(reply, Unreachable):
                self._log("fence", queue=line.queue_id, until=line.fence)
                self._log("beat", queue=line.queue_id, sent=sent, unknown=len(reply[5]))

        def restored(line: Line, sent: float, reply: Any) -> None:
            on_restored(line, sent, reply)
            if not isinstance(reply, Unreachable):
                self._log("fence", queue=line.queue_id, until=line.fence)
                self._log("restored", queue=line.queue_id)

        heart.__dict__.update(_on_beat=beat, _on_restored=restored)

    def listen(self, listener: Listener) -> None:
        def on_event(event: BackendEvent) -> None:
            if isinstance(event, SlotLost):
                ticket = event.ticket
                fence = self._fence(ticket.queue_id)
                self._log(
                    "lost",
                    queue=ticket.queue_id,
                    call=ticket.item_id,
                    reason=event.reason,
                    fence=fence if event.reason == "lapsed" else None,
                )
            elif isinstance(event, Disrupted):
                self._log("disrupted", reason=event.reason)
            listener(event)

        self._inner.listen(on_event)

    async def enter(self, entry: EnterRequest) -> EnterResult:
        admission = await self._inner.enter(entry)
        queue, call = entry.queue_id, entry.item_id
        fence = self._fence(queue)
        if fence is not None:
            self._log("fence", queue=queue, until=fence)
        if admission.position:
            session = self._inner._session
            passage = session.ledger.find(admission.ticket.id) if session is not None else None
            waits = passage is not None and passage.stage is Stage.WAITING
            place = passage.number if passage is not None and waits else None
            self._log("entered", queue=queue, call=call, place=place)
        elif admission.grant is not None:
            self._granted.add(admission.ticket.id)
        return admission

    async def wait(self, ticket: Ticket, timeout: float | None) -> Grant:
        grant = await self._inner.wait(ticket, timeout)
        self._granted.add(ticket.id)
        return grant

    async def leave(self, ticket: Ticket, context: str = "") -> LeaveResult:
        if ticket.id in self._granted:
            self._granted.remove(ticket.id)
            return await self._inner.leave(ticket, context)
        self._log("giving_up", queue=ticket.queue_id, call=ticket.item_id)
        departure = await self._inner.leave(ticket, context)
        self._log("given_up", queue=ticket.queue_id, call=ticket.item_id, was=departure.was)
        return departure

    def lapsed(self, ticket: Ticket) -> bool:
        return self._inner.lapsed(ticket)

    async def set_limit(self, queue_id: str, limit: int | None) -> None:
        await self._inner.set_limit(queue_id, limit)

    async def stats(self, queue_id: str) -> QueueStats:
        return await self._inner.stats(queue_id)

    async def position(self, queue_id: str, item_id: str) -> int | None:
        return await self._inner.position(queue_id, item_id)

    async def entries(self, queue_id: str) -> list[QueueEntry]:
        return await self._inner.entries(queue_id)

    async def evict(self, queue_id: str, item_id: str) -> int:
        return await self._inner.evict(queue_id, item_id)

    async def ping(self) -> None:
        await self._inner.ping()

    async def close(self) -> None:
        await self._inner.close()

    def _fence(self, queue_id: str) -> float | None:
        session = self._inner._session
        line = session.ledger.lines.get(queue_id) if session is not None else None
        return None if line is None else line.fence


class Caller:
    """Makes the calls of one process."""

    def __init__(self, queue: Queue, lease: float, who: str, log: Log, rng: random.Random) -> None:
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
        """Make no more calls, and wait until those that there are have ended."""
        self._over.set()
        for task in self._tasks:
            await task

    async def _call_again(self, queue_id: str, kind: Kind) -> None:
        while await self._think(self._rng.expovariate(1 / kind.think)):
            self._calls += 1
            call = f"{self._who}:{self._calls}"
            hold = self._rng.uniform(*kind.hold) + self._rng.uniform(0, kind.hold_leases * self._lease)
            timeout = None if kind.steady else self._patience()
            task = asyncio.create_task(self._pass(queue_id, call, kind.limit, hold, timeout))
            if not kind.steady and self._rng.random() < 0.15:
                await asyncio.sleep(self._rng.choice((0.0, self._rng.uniform(0, 0.2))))
                task.cancel()
            await asyncio.wait({task})  # cancelled before its first step, it never began

    def _patience(self) -> float | None:
        impatient = self._rng.uniform(0.01, 0.4)
        return self._rng.choice((None, None, None, 0.0, impatient, 2 * self._lease))

    async def _pass(
        self, queue_id: str, call: str, limit: int, hold: float, timeout: float | None
    ) -> None:
        names: dict[str, Any] = {"queue": queue_id, "call": call}
        how = "released"
        begun = False  # cancelled before its first step, the task never comes here
        try:
            self._log("enter", timeout=timeout, **names)
            begun = True
            slot_of = self._queue.slot(queue_id, item_id=call, max_concurrent=limit, timeout=timeout)
            async with slot_of as slot:
                self._log("grant", token=slot.fencing_token, **names)
                try:
                    await self._hold(hold)
                finally:
                    self._log("leave", lost=slot.lost, **names)
        except QueueTimeoutError:
            how = "timeout" if timeout else "refused"
        except EvictedError:
            how = "evicted"
        except BackendUnavailableError:
            how = "failed"
        except asyncio.CancelledError:
            how = "cancelled"
        finally:
            if begun:
                self._log("end", how=how, **names)

    async def _hold(self, seconds: float) -> None:
        """At most `seconds`; not long once all is to come to an end."""
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
    """Log when the loop came late, and when the wall clock jumped."""
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
    """Not by time.sleep, which libfaketime breaks."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        select.select([], [], [], left)


def run(config: dict[str, Any]) -> None:
    """The whole life of a worker process."""
    if config.get("plant"):
        plant(config["plant"])
    asyncio.run(_run(config))


async def _run(config: dict[str, Any]) -> None:
    who, lease = config["who"], config["lease"]
    log = Log(Path(config["folder"]) / f"{who}.log", who)
    recorder = Recorder(RedisBackend(config["url"], lease=lease), log)
    queue = Queue(recorder, telemetry=Telemetry(registry=CollectorRegistry()))
    recorder.join()
    caller = Caller(queue, lease, who, log, random.Random(config["seed"]))
    log("up", worker=config["worker"], instance=queue.instance_id)
    clocks = asyncio.create_task(watch_clocks(log))
    reader, writer = await asyncio.open_unix_connection(config["socket"])

    def say(**fields: Any) -> None:
        writer.write(json.dumps(fields).encode() + b"\n")

    say(who=who, pid=os.getpid())
    while True:  # what a campaign judges begins when the instance is connected
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
            layered = {k: v for k, v in _kept(queue, recorder).items() if v}
            say(state={name: repr(value)[:500] for name, value in layered.items()})
        elif command["do"] == "close":
            break
    await queue.close()
    clocks.cancel()
    say(closed=True)
    await writer.drain()


def _kept(queue: Queue, recorder: Recorder) -> dict[str, Any]:
    kept = state_of(queue)
    session = recorder._inner._session
    if session is not None:
        kept |= {"lines": session.ledger.lines, "passages": session.ledger._passages}
    return kept | {"granted": recorder._granted}
