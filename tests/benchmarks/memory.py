"""In memory, beside asyncio.Semaphore and anyio: enter + leave with a slot free, and hand-off.

Nothing here waits for anything outside, so the clock is the time that this process was given a core: on
an idle machine the same as any clock, on a busy one the only that tells.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import anyio

from genesis.queue import InMemoryBackend
from tests.benchmarks.rounds import Comparison, Plan, Row, alternate
from tests.benchmarks.subjects import (
    drain,
    hand_offs,
    hand_offs_on,
    layers,
    pairs,
    pairs_on,
    queues,
    side_by_side,
    tracer_provider,
)
from tests.support.waiting import quiesce

__all__ = ["SECTIONS"]

CLOCK = time.process_time
OTHERS = {
    "asyncio.Semaphore": asyncio.Semaphore,
    "anyio.Semaphore": anyio.Semaphore,
    "anyio.CapacityLimiter": anyio.CapacityLimiter,
}


async def free(plan: Plan) -> list[Comparison]:
    count = plan.count(2_000)
    rows: dict[str, Row] = {}
    for name, kind in OTHERS.items():
        # more of them, because they are so short that a round would end before the clock is steady
        rows[name] = partial(_semaphore_pairs, kind, 10 * count)
    for name, backend in layers(InMemoryBackend).items():
        rows[name] = partial(pairs_on, backend, "sales", count, clock=CLOCK)
    async with queues(InMemoryBackend) as made:
        for name, queue in made.items():
            rows[name] = partial(pairs, queue, "sales", count, clock=CLOCK)
        rows["4 recorded spans of the SDK alone"] = partial(_spans, count)
        samples = await alternate(rows, plan.rounds)
    title = "In memory: enter + leave, a slot free"
    return [Comparison("memory-free", title, "us", "asyncio.Semaphore", samples)]


async def hand_off(plan: Plan) -> list[Comparison]:
    waiters, times = plan.count(200), plan.count(10)
    rows: dict[str, Row] = {}
    for name, kind in OTHERS.items():
        rows[name] = partial(_semaphore_hand_offs, kind, waiters)
    for name, backend in layers(InMemoryBackend).items():
        rows[name] = partial(hand_offs_on, backend, "sales", waiters, clock=CLOCK)
    async with queues(InMemoryBackend) as made:
        for name, queue in made.items():
            rows[name] = partial(hand_offs, queue, "sales", waiters, clock=CLOCK)
        repeated: dict[str, Row] = {row: partial(_mean, run, times) for row, run in rows.items()}
        samples = await alternate(repeated, plan.rounds)
    title = f"In memory: hand-off, {waiters} wait"
    return [Comparison("memory-hand-off", title, "us", "asyncio.Semaphore", samples)]


SECTIONS = {"memory-free": free, "memory-hand-off": hand_off}


async def _mean(row: Row, times: int) -> float:
    return sum([await row() for _ in range(times)]) / times


async def _semaphore_pairs(kind: Any, count: int) -> float:
    semaphore = kind(1)

    async def call() -> None:
        for _ in range(count):
            await semaphore.acquire()
            semaphore.release()

    return await side_by_side([call()], count, CLOCK)


async def _spans(count: int) -> float:
    """As many spans as a call has, with four attributes each."""
    tracer = tracer_provider(1.0).get_tracer("benchmark")
    attributes = dict.fromkeys(("a", "b", "c", "d"), "value")

    async def call() -> None:
        for _ in range(count):
            for _ in range(4):
                tracer.start_span("span", attributes=attributes).end()

    return await side_by_side([call()], count, CLOCK)


async def _semaphore_hand_offs(kind: Any, waiters: int) -> float:
    semaphore = kind(1)
    return await drain(lambda _: semaphore, waiters, quiesce, CLOCK)
