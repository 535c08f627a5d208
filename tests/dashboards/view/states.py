"""The states in which the dashboards are looked at, played by real instances.

Seven fleets of three instances, each a Prometheus job with a Redis of its own, live side by side under
the committed rules; the lease and all windows are those of production, scrapes come every 5 s. One
fleet might give several states, one after the other. It takes six minutes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import NamedTuple

import yaml

from tests.dashboards.callers import Callers
from tests.support.example_instance import ExampleInstance
from tests.support.observers import Prometheus
from tests.support.redis_server import RedisServer
from tests.support.telemetry_names import RULE_FILES
from tests.support.waiting import wait_until

__all__ = [
    "INSTANCES",
    "LEASE",
    "LIMIT",
    "SCRAPE_SECONDS",
    "STATES",
    "Fleet",
    "Moment",
    "Played",
    "lasts",
    "play",
    "production_rules",
]

INSTANCES = 3
LEASE = 15.0
LIMIT = 4
PATIENCE = 30.0  # seconds until a caller is sent away
TALK = 8.0  # longer than a heartbeat, or the line would never be reported
SCRAPE_SECONDS = 5
HISTORY = 75.0  # seconds of health before a fault
FORGOTTEN = 310.0  # seconds after which the last five minutes do not show what was before


class Moment(NamedTuple):
    """When a state was there to be seen, in seconds since the epoch, and in which job."""

    state: str
    job: str
    at: float


class Fleet(Callers):
    """Three instances under uvloop on one Redis, and their callers.

    Args:
        job: what Prometheus calls it.
        options: of redis-server.
        last_limit: that the third instance names.
        patience: seconds until a caller is sent away.
    """

    def __init__(
        self, job: str, *options: str, last_limit: int = LIMIT, patience: float = PATIENCE
    ) -> None:
        super().__init__()
        self.job = job
        self.redis = RedisServer(*options)
        self.instances = [
            ExampleInstance(self.redis.url, LEASE, limit, patience)
            for limit in (*[LIMIT] * (INSTANCES - 1), last_limit)
        ]

    async def start(self) -> None:
        for instance in self.instances:
            instance.start()
            await wait_until(instance.ready, f"{instance.name} is ready", 60.0)

    def healthy(self) -> None:
        """Half of the slots are in use, and nobody waits."""
        self.arrivals(self.instances, "sales", lambda: TALK / 2, lambda: TALK - 0.2)
        self.arrivals(self.instances, "support", lambda: 2 * TALK, lambda: TALK)

    def busy(self) -> None:
        """As many callers as the slots can just take: they wait for seconds, and are served in time."""
        self.at_random(self.instances, "sales", TALK / LIMIT / 0.85, TALK, seed=7)
        self.arrivals(self.instances, "support", lambda: 2 * TALK, lambda: TALK)

    async def close(self) -> None:
        await self.hang_up_all()
        for instance in self.instances:
            instance.close()
        self.redis.close()


Note = Callable[[str], Awaitable[None]]
"""Keeps the present moment as that of a state, after one more scrape."""


async def lasts(seconds: float) -> None:
    """Let a state last. How long it lasts is what the dashboards show."""
    await asyncio.sleep(seconds)


async def idle(fleet: Fleet, note: Note) -> None:
    """There were calls, but none for five minutes."""
    fleet.healthy()
    await lasts(15)
    await fleet.hang_up_all()
    await lasts(FORGOTTEN)
    await note("idle")


async def healthy(fleet: Fleet, note: Note) -> None:
    fleet.healthy()
    await lasts(3 * HISTORY)
    await note("healthy")
    await fleet.hang_up_all()
    for instance in fleet.instances:
        instance.stop()
    await lasts(100)
    await note("all stopped")


async def busy(fleet: Fleet, note: Note) -> None:
    fleet.busy()
    await lasts(3 * HISTORY)
    await note("busy")


async def exhausted(fleet: Fleet, note: Note) -> None:
    """The body of every call hangs: nobody is served any more, and all are sent away after 30 s."""
    fleet.healthy()
    await lasts(HISTORY)
    for instance in (*fleet.instances, fleet.instances[0]):
        fleet.call(instance, "sales", 3000)
    await lasts(150)
    await note("slots exhausted")


async def stuck(fleet: Fleet, note: Note) -> None:
    """One call never leaves its slot; the others go on."""
    fleet.healthy()
    await lasts(HISTORY)
    fleet.call(fleet.instances[1], "sales", 3000)
    await lasts(25 * TALK)  # for 20 times the mean it might be a long call
    await note("one slot stuck")


async def killed(fleet: Fleet, note: Note) -> None:
    """SIGKILL of an instance that holds and waits."""
    fleet.busy()
    await lasts(HISTORY)
    one = fleet.instances[1]
    for _ in range(3):
        fleet.call(one, "sales", 3000)
    await lasts(15)
    one.kill()
    await lasts(2 * LEASE)
    await note("instance killed")


async def redis_down(fleet: Fleet, note: Note) -> None:
    """Redis is killed, and stays away."""
    fleet.healthy()
    await lasts(HISTORY)
    fleet.redis.kill()
    began = time.monotonic()
    for seconds in (10, 150):
        await lasts(began + seconds - SCRAPE_SECONDS - time.monotonic())
        await note(f"redis down {seconds} s")
    fleet.redis.start()
    await lasts(60)
    await note("redis back")


NOBODY = "nobody"  # a job that is not there
PLAYS = {play.__name__: play for play in (idle, healthy, busy, exhausted, stuck, killed, redis_down)}
STATES = (
    "no data", "idle", "healthy", "busy", "slots exhausted", "one slot stuck", "instance killed",
    "redis down 10 s", "redis down 150 s", "redis back", "all stopped",
)  # fmt: skip


class Played:
    """What was played, with the Prometheus that saw it; use as `async with`, or `close` it."""

    def __init__(self, prometheus: Prometheus, fleets: list[Fleet], stack: AsyncExitStack) -> None:
        self.prometheus = prometheus
        self.moments: list[Moment] = []
        self._fleets = {fleet.job: fleet for fleet in fleets}
        self._stack = stack

    def logs(self, job: str) -> Iterator[str]:
        """The files of the instances of a job."""
        fleet = self._fleets.get(job)
        return (str(instance.log) for instance in (fleet.instances if fleet else ()))

    async def __aenter__(self) -> Played:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


async def play() -> Played:
    """Play all states; returns while the fleets and Prometheus are still there."""
    async with AsyncExitStack() as stack:
        fleets = []
        for job in PLAYS:
            fleet = Fleet(job)
            stack.push_async_callback(fleet.close)
            fleets.append(fleet)
            await fleet.start()
        ports = {fleet.job: [instance.port for instance in fleet.instances] for fleet in fleets}
        prometheus = Prometheus(ports, production_rules(), f"{SCRAPE_SECONDS}s")
        stack.callback(prometheus.close)
        played = Played(prometheus, fleets, AsyncExitStack())
        await wait_until(
            lambda: prometheus.value("sum(up)") == INSTANCES * len(fleets), "all are scraped", 60.0
        )

        def note_of(fleet: Fleet) -> Note:
            async def note(state: str) -> None:
                noted = time.time()
                scraped = f'min(timestamp(up{{job="{fleet.job}"}}))'
                await wait_until(
                    lambda: (prometheus.value(scraped) or 0.0) > noted, f"{fleet.job} is scraped", 60.0
                )
                played.moments.append(Moment(state, fleet.job, time.time()))
                print(f"{state}: {fleet.job} at {time.time():.0f}", flush=True)

            return note

        await asyncio.gather(*(PLAYS[fleet.job](fleet, note_of(fleet)) for fleet in fleets))
        played.moments.append(Moment("no data", NOBODY, time.time()))
        played.moments.sort(key=lambda moment: STATES.index(moment.state))
        played._stack = stack.pop_all()
    return played


def production_rules() -> str:
    """The committed rule files as one."""
    groups = [group for file in RULE_FILES for group in yaml.safe_load(file.read_text())["groups"]]
    return str(yaml.safe_dump({"groups": groups}, sort_keys=False))
