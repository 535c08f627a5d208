"""Instances of one test on Sentinels or a Cluster, and calls on them."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.observability import Telemetry
from genesis.queue import RedisBackend
from tests.support.redis_server import RedisServer
from tests.support.topology import Cluster, slot_of
from tests.support.waiting import wait_until

__all__ = [
    "LEASE", "Instances", "held_at", "held_until", "numbers_are", "one_holds_one_waits", "queue_on",
]  # fmt: skip

LEASE = 6.0  # seconds


class Instances:
    """Queues of one test, closed at its end; they share a registry."""

    def __init__(self) -> None:
        self.queues: list[Queue] = []
        self.registry = CollectorRegistry()

    def make(self, **options: Any) -> Queue:
        backend = RedisBackend(**{"lease": LEASE, "operation_timeout": LEASE, **options})
        queue = Queue(backend, telemetry=Telemetry(registry=self.registry))
        self.queues.append(queue)
        return queue

    def disruptions(self, reason: str) -> float:
        name, labels = "genesis_backend_disruptions_total", {"backend": "redis", "reason": reason}
        return self.registry.get_sample_value(name, labels) or 0.0


def queue_on(cluster: Cluster, server: RedisServer, number: int = 0) -> str:
    """A queue_id that `server` serves; a different one for each number."""
    names = (f"queue-{n}" for n in itertools.count())
    served = (name for name in names if cluster.owner(slot_of(name)) is server)
    return next(itertools.islice(served, number, None))


async def held_at(queue: Queue, name: str) -> float:
    """Enter and leave. Returns the time of the grant."""
    async with queue.slot(name, max_concurrent=1):
        return time.monotonic()


async def held_until(queue: Queue, name: str, until: asyncio.Event) -> None:
    async with queue.slot(name, max_concurrent=1):
        await until.wait()


async def numbers_are(queue: Queue, name: str, waiting: int, holding: int) -> bool:
    return (await queue.stats(name))[:2] == (waiting, holding)


async def one_holds_one_waits(
    queue: Queue, other: Queue, name: str
) -> tuple[asyncio.Event, asyncio.Task[None], asyncio.Task[float]]:
    """The holder on `queue` leaves when the event is set; the waiter on `other`, at once."""
    go = asyncio.Event()
    holder = asyncio.create_task(held_until(queue, name, go))
    await wait_until(lambda: numbers_are(other, name, 0, 1), "the holder holds")
    waiter = asyncio.create_task(held_at(other, name))
    await wait_until(lambda: numbers_are(other, name, 1, 1), "the waiter waits")
    return go, holder, waiter
