"""Over Redis, in one process, beside the same script calls said bare through redis-py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from genesis.queue import RedisBackend
from tests.benchmarks.relay import Relay
from tests.benchmarks.rounds import Comparison, Plan, Row, alternate
from tests.benchmarks.subjects import (
    QUIET,
    Yardstick,
    hand_offs,
    hand_offs_on,
    layers,
    pairs,
    pairs_on,
    queues,
    recorded,
)
from tests.support.redis_server import RedisServer

__all__ = ["SECTIONS", "redis_server"]

BARE = "redis-py, the same two EVALSHA"
BARE_HAND_OFF = "redis-py, EVALSHA that publishes + its delivery"


async def one_task(plan: Plan) -> list[Comparison]:
    count = plan.count(400)
    async with redis_server() as server, queues(partial(_backend, server)) as made:
        bare = Yardstick(server.url, await recorded(server, 1))
        backends = layers(partial(_backend, server))
        rows: dict[str, Row] = {BARE: partial(bare.pairs, count)}
        for name, backend in backends.items():
            rows[name] = partial(pairs_on, backend, name, count)
        for name, queue in made.items():
            rows[name] = partial(pairs, queue, name, count)
        samples = await alternate(rows, plan.rounds)
        await bare.close()
        for backend in backends.values():
            await backend.close()
    return [Comparison("redis-free", "Redis: enter + leave, one task", "us", BARE, samples)]


async def many_tasks(plan: Plan) -> list[Comparison]:
    sizes, total = (64, 500), plan.count(4_000)
    bare_rows = {size: f"redis-py over its pool, {size} tasks" for size in sizes}
    async with redis_server() as server, queues(partial(_backend, server)) as made:
        yardsticks = []
        rows: dict[str, Row] = {}
        for size in sizes:
            tasks = plan.count(size)
            count = max(1, total // size)
            bare = Yardstick(server.url, await recorded(server, tasks))
            yardsticks.append(bare)
            rows[bare_rows[size]] = partial(bare.pairs, count)
            for name, queue in made.items():
                rows[f"{name}, {size} tasks"] = partial(pairs, queue, f"{name}-{size}", count, tasks)
        samples = await alternate(rows, plan.rounds)
        for bare in yardsticks:
            await bare.close()
    found = []
    for size in sizes:
        mine = {row: figures for row, figures in samples.items() if f", {size} tasks" in row}
        title = f"Redis: enter + leave, {size} tasks at once"
        found.append(Comparison(f"redis-{size}", title, "us a pair", bare_rows[size], mine))
    mine = {row: figures for row, figures in samples.items() if "1 % sampled" in row}
    title = "Redis: 500 tasks beside 64"
    found.append(Comparison("redis-500-to-64", title, "us a pair", next(iter(mine)), mine))
    return found


async def hand_off(plan: Plan) -> list[Comparison]:
    waiters = plan.count(200)
    async with redis_server() as server, queues(partial(_backend, server)) as made:
        backends = layers(partial(_backend, server))
        async with Relay(server.url, "only", "only") as relay:
            rows: dict[str, Row] = {BARE_HAND_OFF: partial(relay.alone, waiters)}
            for name, backend in backends.items():
                rows[name] = partial(hand_offs_on, backend, name, waiters)
            for name, queue in made.items():
                rows[name] = partial(hand_offs, queue, name, waiters)
            samples = await alternate(rows, plan.rounds)
        for backend in backends.values():
            await backend.close()
    title = f"Redis: hand-off in one process, {waiters} wait"
    return [Comparison("redis-hand-off", title, "us", BARE_HAND_OFF, samples)]


SECTIONS = {"redis-free": one_task, "redis-tasks": many_tasks, "redis-hand-off": hand_off}


@asynccontextmanager
async def redis_server() -> AsyncIterator[RedisServer]:
    """A server of the section's own."""
    server = RedisServer()
    try:
        yield server
    finally:
        server.close()


def _backend(server: RedisServer) -> RedisBackend:
    return RedisBackend(server.url, lease=QUIET)
