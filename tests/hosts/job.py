"""A job that shares a line with others: a program of its own, or child processes.

    python -m tests.hosts.job <redis url> plain|spawn|fork

Each process plays its calls, one of which gives up, prints its metrics as one JSON line, and then holds
both slots until SIGTERM cancels it.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import sys
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from genesis import Queue, RedisBackend
from genesis.observability import Telemetry
from tests.hosts.numbers import Numbers, numbers
from tests.support.waiting import wait_until

__all__ = ["DONE", "LIMIT", "make", "play", "stands"]

CALLS = 10
LIMIT = 2
DONE = Numbers(granted=CALLS + LIMIT, cancelled=1, released=CALLS + LIMIT, entered=CALLS + LIMIT + 1)
"""What `play` has done by its end."""


def make(url: str) -> tuple[Queue, CollectorRegistry]:
    registry = CollectorRegistry()
    return Queue(RedisBackend(url), telemetry=Telemetry(registry)), registry


async def play(queue: Queue, queue_id: str) -> None:
    """Calls at once, and one that gives up while the slots are taken."""

    async def call() -> None:
        async with queue.slot(queue_id, max_concurrent=LIMIT):
            await asyncio.sleep(0.001)  # the work

    await asyncio.gather(*(call() for _ in range(CALLS)))
    leave = asyncio.Event()
    holding = [asyncio.create_task(hold(queue, queue_id, leave)) for _ in range(LIMIT)]
    await stands(queue, queue_id, 0, LIMIT)
    waiter = asyncio.create_task(call())
    await stands(queue, queue_id, 1, LIMIT)
    waiter.cancel()
    await stands(queue, queue_id, 0, LIMIT)
    leave.set()
    await asyncio.gather(*holding)
    await stands(queue, queue_id, 0, 0)


async def hold(queue: Queue, queue_id: str, leave: asyncio.Event) -> None:
    async with queue.slot(queue_id, max_concurrent=LIMIT):
        await leave.wait()


async def stands(queue: Queue, queue_id: str, waiting: int, in_use: int) -> None:
    async def is_so() -> bool:
        stats = await queue.stats(queue_id)
        return (stats.waiting, stats.in_use) == (waiting, in_use)

    await wait_until(is_so, f"{waiting} wait and {in_use} hold")


async def job(queue: Queue, registry: CollectorRegistry, queue_id: str) -> None:
    """`play`, then hold until SIGTERM."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with queue:
        await play(queue, queue_id)
        done = numbers(generate_latest(registry).decode(), queue_id)
        async with queue.slot(queue_id, max_concurrent=LIMIT), queue.slot(queue_id):
            say(pid=os.getpid(), queue_id=queue_id, instance_id=queue.instance_id, done=done)
            await asyncio.Event().wait()


def run(queue: Queue, registry: CollectorRegistry, queue_id: str) -> None:
    try:
        asyncio.run(job(queue, registry, queue_id))
    except asyncio.CancelledError:
        say(ended=queue_id)


def run_spawned(url: str, queue_id: str) -> None:
    run(*make(url), queue_id)


def say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def main(url: str, how: str) -> None:
    if how == "plain":
        run_spawned(url, "jobs-0")
        return
    context: Any = multiprocessing.get_context(how)
    made = make(url) if how == "fork" else None  # before the fork, and used after it only
    children = [
        context.Process(target=run_spawned, args=(url, f"jobs-{number}"))
        if made is None
        else context.Process(target=run, args=(*made, f"jobs-{number}"))
        for number in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
