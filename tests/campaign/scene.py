"""The targets of faults: processes under test, their proxies to Redis, and the server."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from genesis.queue import RedisBackend
from tests.campaign.faults import Effect
from tests.campaign.forks import ForkServer, find_libfaketime
from tests.campaign.history import CONDUCTOR, History, Log
from tests.campaign.worker import QUEUES, STEADY
from tests.support.redis_server import RedisServer, free_port
from tests.support.tcp_proxy import Relay, TcpProxy
from tests.support.topology import Cluster
from tests.support.waiting import wait_until

__all__ = ["WORKERS", "Company", "Fronts", "Scene", "Station"]

WORKERS = ("north", "east", "south", "clocked")  # the last one's wall clock can be made to jump


class Fronts:
    """The proxies of one worker, one for each server, handled as one."""

    def __init__(self) -> None:
        self.each: list[TcpProxy] = []

    @property
    def relays(self) -> list[Relay]:
        return [relay for proxy in self.each for relay in proxy.relays]

    def refuse(self, refusing: bool) -> None:
        """New connections are closed at once."""
        for proxy in self.each:
            proxy.refusing = refusing

    def delay(self, seconds: float) -> None:
        """Delay every chunk, in each direction."""
        for proxy in self.each:
            proxy.delay = seconds


class Company:
    """What outlives a campaign: two fork servers, the clock of one of them, and, on request, a Redis
    Cluster, which takes seconds to create."""

    def __init__(self, *, cluster: bool = False) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="genesis-campaign-")
        self.cluster = Cluster(replicas=1) if cluster else None
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
        new.replace(self._clock)  # an atomic rename, because the file is read all the time

    def close(self) -> None:
        self.plain.close()
        if self.clocked is not self.plain:
            self.clocked.close()
        if self.cluster is not None:
            self.cluster.close()
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
    """One worker: its proxies, and its current process."""

    def __init__(self, scene: Scene, name: str) -> None:
        self._scene = scene
        self.name = name
        self.proxies = Fronts()
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
            "servers": {proxy.target: proxy.port for proxy in self.proxies.each},
            "cluster": scene.clustered,
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
        """The state in /proc: T is stopped."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def tell(self, **command: Any) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(command).encode() + b"\n")

    async def ask(self, word: str, **command: Any) -> Any:
        """Send it a command, and wait for the reply that contains `word`."""
        self.tell(**command)
        await wait_until(lambda: self.said(word), f"{self.who} answers {command}", 60)
        return next(reply[word] for reply in self.replies if word in reply)

    def said(self, word: str) -> bool:
        return any(word in reply for reply in self.replies)

    def relays(self) -> list[Relay]:
        return [relay for relay in self.proxies.relays if relay.open]

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
    """A scene with one server; see also `ClusterScene`."""

    clustered = False

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
        self.nowhere = free_port()
        self.stations: list[Station] = []
        self.expected: dict[str, Station] = {}
        self.up = True  # the server replies, as far as is known here
        self._ids = 0
        self._asking = asyncio.Lock()  # no query is in flight when the server stops
        self._prepare()

    def _prepare(self) -> None:
        self.server = RedisServer()
        self.ports = [self.server.port]
        self._admin = admin_of(self.server.port)

    def backend(self) -> RedisBackend:
        """The backend of an instance that no fault on a worker affects."""
        return RedisBackend(self.server.url, lease=self.lease)

    def number(self) -> int:
        self._ids += 1
        return self._ids

    async def redis(self, *words: str) -> Any:
        """Send a command on a connection that no fault affects."""
        async with self._asking:
            return await self._admin.execute_command(*words)

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """No query is in flight during the block."""
        async with self._asking:
            yield

    async def info(self, section: str, name: str) -> int:
        reply = await self.redis("INFO", section)
        return int(reply.get(name, 0))

    @contextmanager
    def loss(self, *, everything: bool = False) -> Iterator[None]:
        """Redis loses some or all of its data during the block."""
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
        """Count the server's errors of one kind during the block."""
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
        """Log Redis's clock minus ours, by the fastest of a few queries."""
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

    def end(self) -> None:
        """Stop the server, at the very end."""
        self.server.close()


def admin_of(port: int) -> Any:
    """A client for queries outside of the test."""
    return redis.asyncio.Redis(
        port=port, decode_responses=True, socket_timeout=30, retry=Retry(NoBackoff(), 1)
    )
