"""Plays one campaign: a server, four processes that call, faults at random, and a look at what is left.

All that is random comes from the seed: which faults, on whom, when and for how long, and what the
processes do. How they interleave with the machine is not repeatable, so a seed repeats the kind of a
campaign, not its every step; the history that is saved is what happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import redis.asyncio
import redis.exceptions
from prometheus_client import CollectorRegistry
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from genesis import Queue
from genesis.exceptions import BackendUnavailableError
from genesis.observability import Telemetry
from genesis.queue import RedisBackend
from tests.campaign.faults import FAULTS, NONE, Effect, Fault
from tests.campaign.forks import ForkServer, find_libfaketime
from tests.campaign.history import CONDUCTOR, History, Log
from tests.campaign.worker import LATE, QUEUES, STEADY, TICK
from tests.redis_server import RedisServer, free_port
from tests.tcp_proxy import Relay, TcpProxy
from tests.waiting import wait_until

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

WORKERS = ("north", "east", "south", "clocked")  # the last one's wall clock can be made to jump
OVERRIDDEN = "team"
# Seconds until all must have come to an end, once there are no faults any more. How soon it does is
# judged from the history; this is for what never does, and for a machine that is busy otherwise.
PATIENCE = 60.0
# What may be left of a queue in which nobody is, and for how many seconds: records of instances and of
# an override that has ended, so that nothing late is carried out; kept places and tombstones; the index
# of queues and instances, which is listed for a day.
MAY_STAY = {
    "meta": 660,
    "leases": 660,
    "override": 600,
    "past": 86400 + 660,
    "queues": 86400 + 660,
    "instances": 86400 + 660,
}


class Company:
    """What outlives a campaign: the two processes that fork workers, and the clock of one of them."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="genesis-campaign-")
        self.plain = ForkServer()
        self.clocked = self.plain
        self._clock: Path | None = None
        if find_libfaketime() is not None:
            self._clock = Path(self._folder.name) / "clock"
            self.set_clock(0)
            self.clocked = ForkServer(self._clock)

    @property
    def has_clock(self) -> bool:
        return self._clock is not None

    def set_clock(self, seconds: float) -> None:
        """Shift the wall clock of all workers of the last kind."""
        assert self._clock is not None
        new = self._clock.with_suffix(".new")
        new.write_text(f"{seconds:+g}\n")
        new.replace(self._clock)  # whole at any moment: it is read all the time

    def close(self) -> None:
        self.plain.close()
        if self.clocked is not self.plain:
            self.clocked.close()
        self._folder.cleanup()

    def __enter__(self) -> Company:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Station:
    """The place of one worker: its proxy, and the process that is there now."""

    def __init__(self, scene: Scene, name: str, proxy: TcpProxy) -> None:
        self._scene = scene
        self.name = name
        self.proxy = proxy
        self.busy = False  # a fault is on it
        self.who = ""
        self.pid = 0
        self.alive = False
        self.dying = False  # it is being killed, or has closed
        self.replies: list[dict[str, Any]] = []
        self._starts = 0
        self._writer: asyncio.StreamWriter | None = None

    async def start(self) -> None:
        self._starts += 1
        self.dying = False
        self.who = f"{self.name}.{self._starts}"
        self.replies = []
        scene = self._scene
        scene.expected[self.who] = self
        server = scene.company.clocked if self.name == WORKERS[-1] else scene.company.plain
        config = {
            "worker": self.name,
            "who": self.who,
            "url": self.proxy.url,
            "lease": scene.lease,
            "folder": str(scene.folder),
            "socket": scene.socket,
            "seed": scene.rng.getrandbits(32),
            "plant": scene.plant,
            "steady": scene.steady,
        }
        server.fork(config)
        await wait_until(lambda: self.alive, f"{self.who} runs", 60)

    async def kill(self) -> None:
        self.dying = True
        self._scene.log("kill", who=self.who)
        os.kill(self.pid, signal.SIGKILL)
        await wait_until(lambda: not self.alive, f"{self.who} is dead")

    async def close(self) -> None:
        """Let it close its queue and end."""
        await self.ask("closed", do="close")
        await wait_until(lambda: not self.alive, f"{self.who} has ended")

    def stop(self) -> None:
        self._scene.log("stop", who=self.who)
        os.kill(self.pid, signal.SIGSTOP)

    def carry_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self._scene.log("cont", who=self.who)

    def state(self) -> str:
        """As /proc says it: T is stopped."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def tell(self, **command: Any) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(command).encode() + b"\n")

    async def ask(self, word: str, **command: Any) -> Any:
        """Tell it something, and wait for the reply that has `word` in it."""
        self.tell(**command)
        await wait_until(lambda: self.said(word), f"{self.who} answers {command}", 60)
        return next(reply[word] for reply in self.replies if word in reply)

    def said(self, word: str) -> bool:
        return any(word in reply for reply in self.replies)

    def relays(self) -> list[Relay]:
        return [relay for relay in self.proxy.relays if relay.open]

    def cut(self) -> int:
        relays = self.relays()
        for relay in relays:
            relay.cut()
        return len(relays)

    async def serve(self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pid, self._writer, self.alive = pid, writer, True
        try:
            while line := await reader.readline():
                self.replies.append(json.loads(line))
        finally:
            self.alive = False
            writer.close()
            if not self.dying and not self.said("closed"):
                self._scene.log("left_over", what=f"{self.who} ended by itself")


class Scene:
    """All that a fault can reach."""

    def __init__(
        self,
        company: Company,
        folder: Path,
        lease: float,
        rng: random.Random,
        *,
        plant: str = "",
        steady: bool = False,
    ) -> None:
        self.company = company
        self.folder = folder
        self.lease = lease
        self.rng = rng
        self.plant = plant
        self.steady = steady
        self.queues = STEADY if steady else QUEUES
        self.log = Log(folder / f"{CONDUCTOR}.log", CONDUCTOR)
        self.socket = str(folder / "socket")
        self.server = RedisServer()
        self.nowhere = free_port()
        self.stations: list[Station] = []
        self.expected: dict[str, Station] = {}
        self.up = True  # the server answers, as far as is known here
        self._ids = 0
        self._admin: Any = redis.asyncio.Redis(
            port=self.server.port,
            decode_responses=True,
            socket_timeout=30,
            retry=Retry(NoBackoff(), 1),
        )
        self._asking = asyncio.Lock()  # nobody is in the middle of a question when the server goes

    def number(self) -> int:
        self._ids += 1
        return self._ids

    async def redis(self, *words: str) -> Any:
        """A command from the side, on a connection that no fault touches."""
        async with self._asking:
            return await self._admin.execute_command(*words)

    async def info(self, section: str, name: str) -> int:
        reply = await self.redis("INFO", section)
        return int(reply.get(name, 0))

    @contextmanager
    def loss(self, *, everything: bool = False) -> Iterator[None]:
        """Redis forgets something in here, or everything."""
        number = self.number()
        self.log("loss", id=number, all=everything)
        yield
        self.log("loss_end", id=number)

    async def server_down(self, *, save: bool = False) -> None:
        self.up = False
        async with self._asking:
            await self._admin.connection_pool.disconnect()
            await asyncio.to_thread(self.server.end_saving if save else self.server.kill)

    async def server_up(self, *, keep: bool) -> None:
        if not keep:
            self.server.forget_saved()
        await asyncio.to_thread(self.server.start)
        self.server.forget_saved()
        self.up = True

    async def pause(self) -> None:
        self.up = False
        self.server.pause()

    async def resume(self) -> None:
        self.server.resume()
        await self.redis("PING")
        self.up = True

    @asynccontextmanager
    async def refusals(self, word: str, effect: Effect) -> AsyncIterator[None]:
        """Counts the errors of one kind that the server gave meanwhile."""
        before = await self._errors(word)
        yield
        effect.note(await self._errors(word) - before, f"commands refused with {word}")

    async def _errors(self, word: str) -> int:
        stats = (await self.redis("INFO", "errorstats")).get(f"errorstat_{word}", {"count": 0})
        return int(stats["count"])

    def history(self) -> History:
        """All that was logged so far."""
        limits = {queue: kind.limit for queue, kind in self.queues.items()}
        return History.read(self.lease, limits, sorted(self.folder.glob("*.log")))

    def set_clock(self, seconds: float) -> None:
        self.company.set_clock(seconds)

    async def measure_clock(self) -> None:
        """Redis' clock minus ours, by the quickest of a few questions."""
        best = (float("inf"), 0.0)
        for _ in range(5):
            before = time.monotonic()
            seconds, micros = await self.redis("TIME")
            after = time.monotonic()
            offset = int(seconds) + int(micros) / 1e6 - (before + after) / 2
            best = min(best, ((after - before) / 2, offset))
        self.log("clock", offset=best[1], error=best[0])

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = json.loads(await reader.readline())
        await self.expected[hello["who"]].serve(hello["pid"], reader, writer)

    async def close(self) -> None:
        await self._admin.aclose()
        self.log.close()


class Play(NamedTuple):
    """What one campaign is to be."""

    seed: int
    seconds: float
    lease: float
    plant: str = ""
    only: Sequence[str] = ()
    """Kinds of fault to choose from; all of them if empty, none if it is ("none",)."""
    pause: float | None = None
    """Leases between the beginnings of two faults, on average; drawn for the campaign if None."""


class Campaign(NamedTuple):
    """What one campaign was."""

    play: Play
    history: History
    faults: Counter[str]
    felt: Counter[str]
    """Faults whose effect was seen."""


async def play(company: Company, play: Play) -> Campaign:
    """Play it, and return with its history."""
    rng = random.Random(play.seed)
    with tempfile.TemporaryDirectory(prefix="genesis-campaign-") as name:
        scene = Scene(company, Path(name), play.lease, rng, plant=play.plant)
        try:
            async with on_stage(scene) as operator:
                limits = asyncio.create_task(_change_limits(scene, operator, rng))
                await _trouble(scene, play, rng)
                await _end(limits)
                await finish(scene, operator)
        finally:
            scene.server.close()
        history = scene.history()
    done, felt = count_faults(history)
    return Campaign(play, history, done, felt)


@asynccontextmanager
async def on_stage(scene: Scene) -> AsyncIterator[Queue]:
    """The workers run, and call; an instance of ours, that no fault on a worker touches, is there."""
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
                proxy = await stack.enter_async_context(TcpProxy(scene.server.port))
                scene.stations.append(Station(scene, name, proxy))
            await asyncio.gather(*(station.start() for station in scene.stations))
            backend = RedisBackend(scene.server.url, lease=scene.lease)
            telemetry = Telemetry(registry=CollectorRegistry())
            operator = await stack.enter_async_context(Queue(backend, telemetry=telemetry))
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
    """Faults until the time is over; several at once, but never two on one worker or on the server."""
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
    await asyncio.sleep(0.3)  # of the campaign: its beginning is always free of faults
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
    kinds = [FAULTS[name] for name in play.only or FAULTS if name != NONE.name]
    if not scene.company.has_clock:
        kinds = [kind for kind in kinds if kind.name != "clock"]
    return kinds


async def _one(scene: Scene, fault: Fault, server: asyncio.Lock, rng: random.Random) -> None:
    lasts = rng.uniform(*fault.lasts) * scene.lease
    if fault.on == "server":
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
    """Do one fault, stay in it for `lasts` seconds, and end it."""
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
    """An operator who sets the limit of one queue again and again."""
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
    """Cancel it until it has ended: redis-py may take a cancellation for a timeout of its own."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)


async def _watch(scene: Scene) -> None:
    """Log when the machine, or the server without a fault of ours, is slow to answer."""
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
    """Let all calls come to their end, and look at what is left."""

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
    """An instance keeps nothing of calls that are over."""
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
    """Nobody waits and nobody holds, and no slot is taken by nobody."""

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
    """How often each kind of fault came, and how often its effect was seen."""
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
