"""20,000 queues in one process: `python -m tests.benchmarks.many_queues [--loop uvloop]`.

Each has one call that holds its slot all the time; the lease is the default. Meanwhile `/metrics` is
scraped as Prometheus would. Prints the slots lost, the longest stall of the event loop while the calls
enter and afterwards, the longest scrape, and the client's CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
import urllib.request

import uvloop
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.observability import ObservabilityServer, Telemetry
from genesis.queue import RedisBackend
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

QUEUES = 20_000
SCRAPE = 5.0  # seconds between two scrapes


class Stalls:
    """The longest time between two looks of a task that looks every 5 ms, less those 5 ms.

    Attributes:
        longest: seconds by the clock, which count what else the machine does.
        cpu: seconds of this process's CPU.
        collecting: the longest pause of Python's garbage collector, in seconds; part of both.
    """

    def __init__(self) -> None:
        self._began = 0.0
        self.longest = self.cpu = self.collecting = 0.0
        gc.callbacks.append(self._collected)

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.collecting = max(self.collecting, time.perf_counter() - self._began)

    async def watch(self) -> None:
        last, spent = time.perf_counter(), time.process_time()
        while True:
            await asyncio.sleep(0.005)  # that it comes back late is what is measured
            now, used = time.perf_counter(), time.process_time()
            self.longest = max(self.longest, now - last - 0.005)
            self.cpu = max(self.cpu, used - spent)
            last, spent = now, used

    def __str__(self) -> str:
        return (
            f"{self.longest * 1e3:.0f} ms ({self.cpu * 1e3:.0f} ms of CPU; longest garbage collection "
            f"{self.collecting * 1e3:.0f} ms)"
        )


class Calls:
    """One call in each queue, which holds its slot until `go`."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._go = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.inside = self.lost = 0

    async def enter(self, count: int) -> None:
        self._tasks = [asyncio.create_task(self._call(number)) for number in range(count)]
        await wait_until(lambda: self.inside == count, "all have entered", 120)

    async def leave(self) -> None:
        self._go.set()
        await asyncio.gather(*self._tasks)

    async def _call(self, number: int) -> None:
        async with self._queue.slot(f"queue-{number}", max_concurrent=1) as slot:
            self.inside += 1
            await self._go.wait()
            self.lost += slot.lost


def scrape(port: int) -> tuple[float, int]:
    """Seconds that it took, and bytes."""
    began = time.perf_counter()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        size = len(page.read())
    return time.perf_counter() - began, size


async def main(seconds: float, queues: int, freeze: bool) -> None:
    server = RedisServer()
    registry = CollectorRegistry()
    backend = RedisBackend(server.url, operation_timeout=10.0)
    async with (
        Queue(backend, telemetry=Telemetry(registry=registry)) as queue,
        ObservabilityServer(registry=registry, port=0) as endpoint,
    ):
        calls, stalls = Calls(queue), Stalls()
        watching = asyncio.create_task(stalls.watch())
        began = time.perf_counter()
        await calls.enter(queues)
        took = time.perf_counter() - began
        print(f"{queues:,} queues entered in {took:.1f} s, longest stall meanwhile {stalls}")
        if freeze:
            gc.collect()
            gc.freeze()
        stalls.longest = stalls.cpu = stalls.collecting = slowest = 0.0
        cpu, size, end = time.process_time(), 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            await asyncio.sleep(SCRAPE)  # the rate of the scrapes
            took, size = await asyncio.to_thread(scrape, endpoint.port)
            slowest = max(slowest, took)
        cpu = (time.process_time() - cpu) / seconds
        watching.cancel()
        await calls.leave()
    print(
        f"{seconds:g} s: {calls.lost} slots lost, longest stall {stalls}, "
        f"longest scrape {slowest * 1e3:.0f} ms ({size:,} bytes), CPU {cpu:.0%} of a core"
    )
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--queues", type=int, default=QUEUES)
    parser.add_argument("--freeze", action="store_true", help="gc.freeze() once all calls are inside")
    options = parser.parse_args()
    if options.loop == "uvloop":
        uvloop.install()
    asyncio.run(main(options.seconds, options.queues, options.freeze))
