"""How the cost of a hand-off grows with the number of waiters."""

from __future__ import annotations

import gc
import time
from functools import partial
from typing import Any

from genesis import Queue
from genesis.queue import InMemoryBackend, RedisBackend
from tests.benchmarks.rounds import Comparison, Plan
from tests.benchmarks.shared import redis_server
from tests.benchmarks.subjects import QUIET, SAMPLING, Clock, hand_offs, queues
from tests.support.redis_server import RedisServer

__all__ = ["SECTIONS", "row"]

SIZES = (100, 1_000, 10_000, 100_000)
KIND = "1 % sampled"
LEAST = 2_000  # hand-offs a round: short lines are drained several times
assert KIND in SAMPLING


def row(size: int) -> str:
    return f"{size:,} wait"


async def memory(plan: Plan) -> list[Comparison]:
    async with queues(InMemoryBackend, [KIND]) as made:
        (queue,) = made.values()
        samples = await _drains(plan, queue, time.process_time)
    title = f"In memory: hand-off, by the length of the line ({KIND})"
    return [Comparison("growth-memory", title, "us", row(SIZES[0]), samples)]


async def shared(plan: Plan) -> list[Comparison]:
    async with redis_server() as server, queues(partial(_backend, server), [KIND]) as made:
        (queue,) = made.values()
        inside: dict[str, list[float]] = {}
        samples = await _drains(plan, queue, time.perf_counter, server, inside)
    title = f"Redis: hand-off in one process, by the length of the line ({KIND})"
    script = "Redis: of that, inside the script that leaves and grants"
    return [
        Comparison("growth-redis", title, "us", row(SIZES[0]), samples),
        Comparison("growth-script", script, "us", row(SIZES[0]), inside),
    ]


SECTIONS = {"growth-memory": memory, "growth-redis": shared}


async def _drains(
    plan: Plan,
    queue: Queue,
    clock: Clock,
    server: RedisServer | None = None,
    inside: dict[str, list[float]] | None = None,
) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {row(size): [] for size in SIZES}
    await hand_offs(queue, "warm", plan.count(1_000), clock)
    for _ in range(min(plan.rounds, 3)):  # the longest line takes most of a minute to fill and to drain
        for size in SIZES:
            waiters = plan.count(size)
            times = max(1, plan.count(LEAST) // waiters)
            gc.collect()
            scripts = _Scripts(server)
            figures = [
                await hand_offs(queue, "line", waiters, clock, scripts.reset) for _ in range(times)
            ]
            samples[row(size)].append(sum(figures) / times)
            if inside is not None:
                inside.setdefault(row(size), []).append(scripts.microseconds())
    return samples


class _Scripts:
    """What a script call takes inside the server, since the line stood."""

    def __init__(self, server: RedisServer | None) -> None:
        self._server = server

    def reset(self) -> None:
        if self._server is not None:
            self._server.client.config_resetstat()

    def microseconds(self) -> float:
        assert self._server is not None
        stats: Any = self._server.client.info("commandstats")
        return float(stats["cmdstat_evalsha"]["usec_per_call"])


def _backend(server: RedisServer) -> RedisBackend:
    return RedisBackend(server.url, lease=QUIET)
