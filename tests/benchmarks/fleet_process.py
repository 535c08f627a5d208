"""One process of a fleet (`fleet.py`): has some of the instances, and says what they measured.

    python -m tests.benchmarks.fleet_process '[URL, FIRST, STEP, LOAD]'

Reads one JSON object a line from stdin, whose `do` names a method of `_Instances`. Writes one JSON line
for each.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from genesis import Queue
from genesis.queue import RedisBackend
from tests.benchmarks.subjects import telemetry

__all__ = ["Load", "allow_files", "queue_id"]


class Load(NamedTuple):
    """What the instances of a fleet do."""

    instances: int
    seconds: float = 20.0
    processes: int = 4
    lease: float = 15.0
    share: int = 10
    """Instances that share a queue."""
    hold: float = 0.1
    """Seconds for which a call holds its slot."""

    @property
    def queues(self) -> int:
        return -(-self.instances // self.share)


def allow_files(wanted: int) -> None:
    """As many open files as the system allows, if that many are needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else wanted
    if soft != resource.RLIM_INFINITY and soft < min(wanted, most):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, most), hard))


def queue_id(number: int) -> str:
    return f"queue-{number}"


class _Instances:
    """The instances of one process."""

    def __init__(self, url: str, numbers: range, load: Load) -> None:
        self._load = load
        self._empty = _resident()
        self._go = asyncio.Event()
        self._passages: list[tuple[str, int, int, int]] = []
        self._lost = 0
        self._used = 0.0
        self._telemetry = telemetry(0.01)
        self._disruptions = 0.0
        self._queues = {
            number: Queue(RedisBackend(url, lease=load.lease), telemetry=self._telemetry)
            for number in numbers
        }
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """One after the other, as instances come; all at once, their loop would be what is measured."""
        for number, queue in self._queues.items():
            await queue.ping()
            name = queue_id(number // self._load.share)
            self._tasks.append(asyncio.create_task(self._calls(queue, name)))

    async def mark(self) -> None:
        self._passages.clear()
        self._used = time.process_time()
        self._disruptions = self._count_disruptions()

    async def go(self) -> None:
        self._go.set()

    async def report(self) -> dict[str, Any]:
        for task in self._tasks:
            if task.done():
                task.result()
        return {
            "passages": self._passages,
            "cpu": time.process_time() - self._used,
            "memory": _resident() - self._empty,
            "lost": self._lost,
            "disruptions": self._count_disruptions() - self._disruptions,
        }

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(queue.close() for queue in self._queues.values()))

    async def _calls(self, queue: Queue, queue_id: str) -> None:
        while True:
            async with queue.slot(queue_id, max_concurrent=1) as slot:
                inside = time.monotonic_ns()
                await self._go.wait()
                await asyncio.sleep(self._load.hold)
                self._lost += slot.lost
                released = time.monotonic_ns()
            self._passages.append((queue_id, slot.fencing_token, inside, released))

    def _count_disruptions(self) -> float:
        return sum(
            sample.value
            for metric in self._telemetry.registry.collect()
            for sample in metric.samples
            if sample.name == "genesis_backend_disruptions_total"
        )


def _resident() -> int:
    """Bytes of memory that this process has now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize()


async def _work(url: str, first: int, step: int, load: Load) -> None:
    allow_files(load.instances * 2 + 1_000)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    instances = _Instances(url, range(first, load.instances, step), load)
    while line := await reader.readline():
        answer = await getattr(instances, json.loads(line)["do"])()
        print(json.dumps(answer), flush=True)
    await instances.close()


if __name__ == "__main__":
    url, first, step, load = json.loads(sys.argv[1])
    asyncio.run(_work(url, first, step, Load(*load)))
