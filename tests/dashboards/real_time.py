"""The committed rules with their real windows, on real instances: which alert, after how long.

    python -m tests.dashboards.real_time [--minutes 24]

Eight fleets of three instances under uvloop, each a Prometheus job with a Redis of its own, live side
by side; the lease is 15 s, and scrapes come every 15 s, the fewest that the rules allow. Three fleets
have no fault: one is healthy and busy, one is idle while its connections are closed again and again,
one is deployed every minute. The others are healthy for three minutes; then each has its faults, which
end early enough for most alerts to clear. It prints a table, and exits with 1 if an alert fired where
there was no fault.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from prometheus_client import CollectorRegistry

from genesis import Queue, RedisBackend
from genesis.observability import Telemetry
from tests.dashboards.view.states import LEASE, LIMIT, Fleet, lasts, production_rules
from tests.support.observers import Prometheus
from tests.support.waiting import wait_until

SCRAPES = 15  # seconds
CALM = 180.0  # seconds of health before the first fault
OUTAGE = 300.0
HANGS = 3600.0  # seconds that a call talks which never ends
CLEARING = 720.0  # seconds before the end of the run at which the long faults end


class Fault(NamedTuple):
    """What was done, in which job and, if it is one queue's, in which; seconds since the epoch."""

    name: str
    job: str
    queue: str
    began: float
    ended: float


class Run:
    """All fleets, until `ends`."""

    def __init__(self, minutes: float) -> None:
        self.faults: list[Fault] = []
        self.began = time.time()
        self.ends = self.began + 60 * minutes

    def left(self, before: float = 0.0) -> float:
        """Seconds until so many before the end of the run."""
        return max(0.0, self.ends - before - time.time())

    @asynccontextmanager
    async def fault(self, name: str, fleet: Fleet, queue: str = "") -> AsyncIterator[None]:
        began = time.time()
        print(f"{began - self.began:6.0f} s  {fleet.job} {queue}: {name}", flush=True)
        yield
        self.faults.append(Fault(name, fleet.job, queue, began, time.time()))
        print(f"{time.time() - self.began:6.0f} s  {fleet.job} {queue}: {name}, ended", flush=True)


# Without a fault -------------------------------------------------------------------------------------
async def steady(run: Run, fleet: Fleet) -> None:
    """One queue of which half the slots are in use, one in which callers wait for seconds."""
    fleet.healthy()
    fleet.at_random(fleet.instances, "busy", 8.0 / LIMIT / 0.7, 8.0, seed=11)
    await lasts(run.left())


async def idle(run: Run, fleet: Fleet) -> None:
    """Three calls, and no more; Redis has a `timeout`, and each minute the network forgets them."""
    for instance in fleet.instances:
        fleet.call(instance, "sales", 1.0)
    while run.left():
        await lasts(min(60.0, run.left()))
        for kind in ("normal", "pubsub"):
            fleet.redis.client.client_kill_filter(_type=kind, skipme=True)


async def deployed(run: Run, fleet: Fleet) -> None:
    """Each minute one instance is stopped, as a deployment does, and started again."""
    fleet.healthy()
    while run.left(90):
        for instance in fleet.instances:
            await lasts(60.0)
            await asyncio.to_thread(instance.stop)
            instance.start()
            await wait_until(instance.ready, "it is back", 60.0)


# With faults -----------------------------------------------------------------------------------------
async def lines(run: Run, fleet: Fleet) -> None:
    """The faults of single queues, all at once."""
    one, _, three = fleet.instances
    fleet.healthy()
    await lasts(CALM)
    backend = RedisBackend(fleet.redis.url, lease=LEASE)
    telemetry = Telemetry(CollectorRegistry())  # the operator's own, not scraped
    async with Queue(backend, telemetry=telemetry) as operator:
        until = run.left(CLEARING)

        async def hanging() -> None:
            async with run.fault("all slots hang, callers wait 30 s", fleet, "hanging"):
                calls = [fleet.call(one, "hanging", HANGS) for _ in range(LIMIT)]
                calls.append(fleet.every(4.0, one, "hanging", 4.0))
                await lasts(until)
                await fleet.hang_up(*calls)

        async def full() -> None:
            async with run.fault("line full", fleet, "full"):
                calls = [fleet.call(one, "full", HANGS) for _ in range(LIMIT)]
                calls.append(fleet.every(5.0, one, "full&max_waiting=0", 4.0))
                await lasts(until)
                await fleet.hang_up(*calls)

        async def stuck() -> None:
            async with run.fault("one slot stuck", fleet, "stuck"):
                calls = [fleet.call(one, "stuck", HANGS), fleet.every(6.0, one, "stuck", 8.0)]
                await lasts(run.left())
                await fleet.hang_up(*calls)

        async def paused() -> None:
            async with run.fault("pause forgotten", fleet, "paused"):
                await operator.set_limit("paused", 0)
                callers = fleet.every(5.0, one, "paused", 1.0)
                await lasts(run.left(120))
                await operator.set_limit("paused", None)
            await lasts(run.left())
            await fleet.hang_up(callers)

        async def disagreeing() -> None:
            async with run.fault("limits disagree", fleet, "disagreeing"):
                calls = [fleet.call(one, "disagreeing", HANGS)]
                calls += [fleet.every(10.0, i, "disagreeing", 4.0) for i in (one, three)]
                await lasts(run.left())
                await fleet.hang_up(*calls)

        async def sink() -> None:
            async with run.fault("log sink raises", fleet):
                three.signal(signal.SIGUSR1)
                await lasts(60)
                three.signal(signal.SIGUSR2)

        await asyncio.gather(hanging(), full(), stuck(), paused(), disagreeing(), sink())


async def patient(run: Run, fleet: Fleet) -> None:
    """All slots hang, and the callers wait for as long as it takes."""
    fleet.healthy()
    await lasts(CALM)
    one, two, _ = fleet.instances
    async with run.fault("all slots hang, callers are patient", fleet, "patient"):
        calls = [fleet.call(one, "patient", HANGS) for _ in range(LIMIT)]
        calls += [fleet.call(two, "patient", 5.0) for _ in range(3)]
        await lasts(run.left(CALM))
        await fleet.hang_up(*calls[:LIMIT])
    await lasts(run.left())


async def died(run: Run, fleet: Fleet) -> None:
    """An instance is killed with a slot, and starts again after 3 minutes; later one stands still."""
    fleet.healthy()
    _, two, three = fleet.instances
    await lasts(CALM)
    fleet.call(two, "fragile", HANGS)
    await lasts(2 * LEASE)
    async with run.fault("instance killed with a slot", fleet):
        two.kill()
        await lasts(180)
        two.start()
    held = fleet.call(three, "frozen", HANGS)
    fleet.call(two, "frozen", HANGS)
    await lasts(2 * LEASE)
    async with run.fault("instance stands still for 40 s", fleet):
        three.signal(signal.SIGSTOP)
        await lasts(40)
        three.signal(signal.SIGCONT)
    await lasts(LEASE)
    await fleet.hang_up(held)
    await lasts(run.left())


async def cut_off(run: Run, fleet: Fleet) -> None:
    """Redis is killed under load, with calls that hold, and comes back empty."""
    fleet.healthy()
    await lasts(CALM)
    for instance in fleet.instances:
        fleet.call(instance, "long", HANGS)
    await lasts(2 * LEASE)
    async with run.fault("Redis down, callers come", fleet):
        fleet.redis.kill()
        await lasts(OUTAGE)
        fleet.redis.start()
    await lasts(run.left())


async def cut_off_idle(run: Run, fleet: Fleet) -> None:
    """Redis is killed while nobody calls."""
    for instance in fleet.instances:
        fleet.call(instance, "sales", 1.0)
    await lasts(CALM)
    async with run.fault("Redis down, nobody calls", fleet):
        fleet.redis.kill()
        await lasts(OUTAGE)
        fleet.redis.start()
    await lasts(run.left())


PLAYS: dict[str, Callable[[Run, Fleet], Awaitable[None]]] = {
    play.__name__: play
    for play in (steady, idle, deployed, lines, patient, died, cut_off, cut_off_idle)
}
FLEETS: dict[str, Callable[[], Fleet]] = {
    "idle": lambda: Fleet("idle", "--timeout", "2"),
    "lines": lambda: Fleet("lines", last_limit=LIMIT + 1),
    "patient": lambda: Fleet("patient", patience=HANGS),
}


# What was seen ----------------------------------------------------------------------------------------
class Firing(NamedTuple):
    alert: str
    labels: dict[str, str]
    first: float
    last: float


def firings(prometheus: Prometheus, began: float, ended: float) -> list[Firing]:
    """Each alert that fired, by its labels, from its first to its last time."""
    found = []
    for series in prometheus.range('ALERTS{alertstate="firing"}', began, ended, 5):
        labels = series["metric"]
        times = [float(at) for at, _ in series["values"]]
        found.append(Firing(labels["alertname"], labels, times[0], times[-1]))
    return found


def table(run: Run, fired: list[Firing], ended: float) -> tuple[list[str], list[Firing]]:
    """The lines of the table, and what fired without a fault."""
    rows = ["| fault | lasted | alert | fired after | cleared after its end |", "|---|---|---|---|---|"]
    unexplained = list(fired)
    for fault in sorted(run.faults, key=lambda each: each.began):
        mine = sorted((each for each in fired if _is_of(fault, each, run)), key=lambda each: each.first)
        lasted = f"{fault.ended - fault.began:.0f} s"
        if not mine:
            rows.append(f"| {fault.name} | {lasted} | none | | |")
        for each in mine:
            unexplained.remove(each)
            extra = ", ".join(
                each.labels[n] for n in ("window", "reason", "severity") if n in each.labels
            )
            clear = f"{each.last - fault.ended:.0f} s"
            if each.last >= ended - 2 * SCRAPES:
                clear = f"fires at the end of the run, {clear} later"
            after = f"{each.first - fault.began:.0f} s"
            rows.append(f"| {fault.name} | {lasted} | {each.alert} ({extra}) | {after} | {clear} |")
    return rows, unexplained


def _is_of(fault: Fault, firing: Firing, run: Run) -> bool:
    """It is the last fault there that had begun by then, of that queue if it is of one."""
    if firing.labels["job"] != fault.job:
        return False
    queue = firing.labels.get("queue", "")
    there = [each for each in run.faults if each.job == fault.job and each.began <= firing.first]
    of_queue = [each for each in there if each.queue == queue] if queue else []
    there = of_queue or [each for each in there if not each.queue]
    return bool(there) and max(there, key=lambda each: each.began) is fault


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.dashboards.real_time", description=__doc__)
    parser.add_argument("--minutes", type=float, default=24.0)
    minutes = parser.parse_args().minutes
    if not Prometheus.available():
        sys.exit(Prometheus.MISSING)
    async with AsyncExitStack() as stack:
        fleets = []
        for job in PLAYS:
            fleet = FLEETS.get(job, lambda job=job: Fleet(job))()
            stack.push_async_callback(fleet.close)
            fleets.append(fleet)
            await fleet.start()
        ports = {fleet.job: [instance.port for instance in fleet.instances] for fleet in fleets}
        prometheus = Prometheus(ports, production_rules(), f"{SCRAPES}s")
        stack.callback(prometheus.close)
        run = Run(minutes)
        await asyncio.gather(*(PLAYS[fleet.job](run, fleet) for fleet in fleets))
        ended = time.time()
        rows, unexplained = table(run, firings(prometheus, run.began, ended), ended)
    print(*rows, sep="\n")
    print(f"{minutes:g} minutes. Alerts without a fault: {len(unexplained)}")
    for each in unexplained:
        print(f"  {each.first - run.began:.0f} s to {each.last - run.began:.0f} s: {each.labels}")
    if unexplained:
        sys.exit(1)


if __name__ == "__main__":
    asyncio.run(main())
