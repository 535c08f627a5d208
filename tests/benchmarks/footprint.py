"""What a waiter weighs, what a hand-off says to Redis, and what an idle line costs."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from genesis import Queue
from genesis.queue import InMemoryBackend, RedisBackend
from tests.benchmarks.rounds import Comparison, Plan
from tests.benchmarks.shared import redis_server
from tests.benchmarks.subjects import QUIET, hand_offs, queues
from tests.support.redis_server import RedisServer
from tests.support.waiting import quiesce, wait_until

__all__ = ["SECTIONS"]

KIND = "1 % sampled"


async def weight(plan: Plan) -> list[Comparison]:
    """Bytes a waiter: all that Python allocates for it, and what Redis keeps."""
    waiters = plan.count(5_000)
    python: dict[str, list[float]] = {}
    semaphore = asyncio.Semaphore(1)
    python["asyncio.Semaphore"] = [await _bytes_of(lambda _: semaphore, waiters, None)]
    async with redis_server() as server:
        async with queues(InMemoryBackend) as made:
            for name, queue in made.items():
                figure = await _bytes_of(_slots(queue), waiters, queue)
                python[f"{name}, in memory"] = [figure]
        async with queues(partial(_backend, server)) as made:
            for name, queue in made.items():
                figure = await _bytes_of(_slots(queue), waiters, queue)
                python[f"{name}, Redis"] = [figure]
        stored = await _bytes_in_redis(plan.count(10_000), server)
    yardstick = "asyncio.Semaphore"
    title = "Memory a waiter, in Python, with the task that waits"
    return [
        Comparison("weight-python", title, "bytes", yardstick, python),
        Comparison("weight-redis", "Memory a waiter, in Redis", "bytes", None, {"a waiter": [stored]}),
    ]


async def traffic(plan: Plan) -> list[Comparison]:
    """What is said to the server, counted by the server."""
    pairs, waiters = plan.count(500), plan.count(500)
    async with redis_server() as server, queues(partial(_backend, server), [KIND]) as made:
        (queue,) = made.values()
        await queue.ping()
        count = _Traffic(server)
        count.begin()
        for number in range(pairs):
            async with queue.slot("free", item_id=f"item-{number}"):
                pass
        free = count.each(pairs)
        await hand_offs(queue, "line", waiters, stood=count.begin)
        handed = count.each(waiters)
    return [
        Comparison("traffic-free", "Redis: what an enter + leave says", "a pair", None, free),
        Comparison("traffic-hand-off", "Redis: what a hand-off says", "each", None, handed),
    ]


async def heartbeat(plan: Plan) -> list[Comparison]:
    """What waiting costs while nothing happens: the beats, by the length of the line."""
    lease, beats = max(0.6, 3.0 * plan.scale), plan.count(4)
    python: dict[str, list[float]] = {}
    server_side: dict[str, list[float]] = {}
    for size in (100, 1_000, 10_000):
        waiters = plan.count(size)
        async with redis_server() as server, queues(partial(_backend, server, lease), [KIND]) as made:
            (queue,) = made.values()
            go, tasks = await _fill(_slots(queue), waiters, queue)
            await asyncio.sleep(lease / 3)  # until the line is in step
            server.client.config_resetstat()
            used, began = time.process_time(), time.monotonic()
            await asyncio.sleep(beats * lease / 3)
            share = (lease / 3) / (time.monotonic() - began)
            python[f"{size:,} wait"] = [(time.process_time() - used) * share * 1e3]
            stats: Any = server.client.info("commandstats")
            server_side[f"{size:,} wait"] = [stats["cmdstat_evalsha"]["usec"] * share / 1e3]
            await _empty(go, tasks)
    first = "100 wait"
    return [
        Comparison("heartbeat-python", "A heartbeat of a line, in Python", "ms of CPU", first, python),
        Comparison("heartbeat-redis", "A heartbeat of a line, in Redis", "ms", first, server_side),
    ]


SECTIONS = {"weight": weight, "traffic": traffic, "heartbeat": heartbeat}

COUNTERS = {
    "reads by the server (round trips)": "total_reads_processed",
    "bytes to Redis": "total_net_input_bytes",
    "bytes from Redis": "total_net_output_bytes",
}

Enter = Callable[[int], AbstractAsyncContextManager[Any]]


def _slots(queue: Queue) -> Enter:
    return lambda number: queue.slot("weight", item_id=f"item-{number:032}", max_concurrent=1)


async def _fill(
    enter: Enter, waiters: int, queue: Queue | None
) -> tuple[asyncio.Event, list[asyncio.Task[None]]]:
    go = asyncio.Event()

    async def call(number: int) -> None:
        async with enter(number):
            await go.wait()

    tasks = [asyncio.create_task(call(number)) for number in range(waiters + 1)]

    async def all_wait() -> bool:
        return queue is None or (await queue.stats("weight")).waiting == waiters

    await quiesce()
    await wait_until(all_wait, f"{waiters} wait", timeout=120.0)
    return go, tasks


async def _empty(go: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    go.set()
    await asyncio.gather(*tasks)


async def _bytes_of(enter: Enter, waiters: int, queue: Queue | None) -> float:
    await _empty(*await _fill(enter, 10, queue))  # what is made once is made before
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        filled = await _fill(enter, waiters, queue)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    await _empty(*filled)
    return (after - before) / waiters


async def _bytes_in_redis(waiters: int, server: RedisServer) -> float:
    def used() -> int:
        memory: Any = server.client.info("memory")
        return int(memory["used_memory"])

    async with queues(partial(_backend, server), [KIND]) as made:
        (queue,) = made.values()
        await _empty(*await _fill(_slots(queue), 10, queue))
        before = used()
        filled = await _fill(_slots(queue), waiters, queue)
        after = used()
        await _empty(*filled)
    return (after - before) / waiters


class _Traffic:
    """Differences of the server's own counters."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._before: dict[str, float] = {}

    def begin(self) -> None:
        self._server.client.config_resetstat()
        self._before = self._look()

    def each(self, times: int) -> dict[str, list[float]]:
        after, again = self._look(), self._look()  # the second shows what looking itself costs
        calls: Any = self._server.client.info("commandstats")
        counted = {
            name: after[name] - self._before[name] - (again[name] - after[name]) for name in after
        }
        said = {"cmdstat_evalsha": "script calls", "cmdstat_publish": "messages"}
        for command, name in said.items():
            counted[name] = float(calls.get(command, {}).get("calls", 0))
        ours = ("info", "config", "evalsha")
        counted["commands inside the scripts"] = sum(
            float(of["calls"])
            for command, of in calls.items()
            if not command.removeprefix("cmdstat_").startswith(ours)
        )
        order = (*said.values(), "commands inside the scripts", *COUNTERS)
        return {name: [counted[name] / times] for name in order}

    def _look(self) -> dict[str, float]:
        stats: Any = self._server.client.info("stats")
        return {name: float(stats[counter]) for name, counter in COUNTERS.items()}


def _backend(server: RedisServer, lease: float = QUIET) -> RedisBackend:
    return RedisBackend(server.url, lease=lease)
