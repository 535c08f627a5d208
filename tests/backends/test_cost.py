"""Costs by the server's own counters: commands, messages, connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.observability import Telemetry
from genesis.queue import RedisBackend
from tests.conftest import assert_nothing_kept
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

QUIET = 600.0  # seconds of lease, so that no heartbeat comes between two counts


def commands(server: RedisServer) -> dict[str, int]:
    """How often each command was run, by clients and inside scripts, without our own INFO."""
    stats: Any = server.client.info("commandstats")
    ours = ("cmdstat_info", "cmdstat_config|resetstat", "cmdstat_client|list", "cmdstat_config")
    return {
        name.removeprefix("cmdstat_"): int(of["calls"])
        for name, of in stats.items()
        if name not in ours
    }


@pytest.fixture
async def queue(redis_server: RedisServer) -> AsyncIterator[Queue]:
    """An instance that is connected, and sends nothing by itself."""
    telemetry = Telemetry(registry=CollectorRegistry())
    backend = RedisBackend(redis_server.url, lease=QUIET)
    async with Queue(backend, telemetry=telemetry) as queue:
        await queue.ping()
        redis_server.client.config_resetstat()
        yield queue
        await assert_nothing_kept(queue)


class Crowd:
    """`size` waiters behind one holder, all in this process."""

    def __init__(self, queue: Queue, size: int) -> None:
        self._queue = queue
        self.size = size
        self._go = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def gather(self) -> None:
        self._tasks = [asyncio.create_task(self._call()) for _ in range(self.size + 1)]

        async def all_wait() -> bool:
            return (await self._queue.stats("sales")).waiting == self.size

        await wait_until(all_wait, f"{self.size} wait")

    async def drain(self) -> None:
        self._go.set()
        await asyncio.gather(*self._tasks)
        await self._queue._backend.flush()

    async def _call(self) -> None:
        async with self._queue.slot("sales", max_concurrent=1):
            await self._go.wait()


async def test_entering_a_free_queue_and_leaving_are_one_script_call_each(
    queue: Queue, redis_server: RedisServer
) -> None:
    """One EVALSHA to enter, one to leave, and nothing else is sent to the server."""
    async with queue.slot("sales"):
        assert redis_server.calls("evalsha") == 1
    await queue._backend.flush()
    assert redis_server.calls("evalsha") == 2
    assert redis_server.calls("publish") == 0
    assert not {"eval", "script|load", "ping", "multi"} & commands(redis_server).keys()


async def test_a_hand_off_within_a_process_is_one_script_call_and_no_publish(
    queue: Queue, redis_server: RedisServer
) -> None:
    """The reply to the release names the waiter that it granted to."""
    crowd = Crowd(queue, 50)
    await crowd.gather()
    redis_server.client.config_resetstat()
    await crowd.drain()
    assert redis_server.calls("publish") == 0
    assert redis_server.calls("evalsha") == 51


async def test_a_hand_off_to_another_instance_is_one_script_call_and_one_publish(
    queue: Queue, redis_server: RedisServer
) -> None:
    """The release is the only command sent, and wakes the one instance that must act."""
    telemetry = Telemetry(registry=CollectorRegistry())
    async with Queue(RedisBackend(redis_server.url, lease=QUIET), telemetry=telemetry) as other:

        async def call() -> None:
            async with other.slot("sales"):
                pass

        async def waits() -> bool:
            return (await queue.stats("sales")).waiting == 1

        async with queue.slot("sales"):
            waiter = asyncio.create_task(call())
            await wait_until(waits, "the other one waits")
            redis_server.client.config_resetstat()
        await waiter
        await other._backend.flush()
        assert redis_server.calls("publish") == 1
        assert redis_server.calls("evalsha") == 2  # one release each


async def test_a_hand_off_costs_as_many_commands_among_2000_as_among_100(
    queue: Queue, redis_server: RedisServer
) -> None:
    """Not one command more, inside the scripts or outside, however long the line is."""
    counts = []
    for size in (100, 2_000):
        crowd = Crowd(queue, size)
        await crowd.gather()
        redis_server.client.config_resetstat()
        await crowd.drain()
        rounded = {name: round(calls / size, 1) for name, calls in commands(redis_server).items()}
        counts.append({name: count for name, count in rounded.items() if count})
    print("commands per hand-off:", counts[1])
    assert counts[0] == counts[1]


@pytest.mark.slow
async def test_500_waiters_cost_few_connections_and_few_commands(redis_server: RedisServer) -> None:
    """With the default lease, over two heartbeats, all in all: <= 20 connections, < 20 commands/s."""
    telemetry = Telemetry(registry=CollectorRegistry())
    async with Queue(RedisBackend(redis_server.url), telemetry=telemetry) as queue:
        crowd = Crowd(queue, 500)
        await crowd.gather()
        interval = queue._backend.heartbeat_interval
        redis_server.client.config_resetstat()
        await asyncio.sleep(2 * interval)  # two heartbeats are the subject
        counted = commands(redis_server)
        connections = redis_server.connections()
        said = counted.get("evalsha", 0) + counted.get("ping", 0)
        inside = sum(counted.values()) - said
        print(
            f"{connections} connections; commands/s: said {said / (2 * interval):.2f}, "
            f"inside the scripts {inside / (2 * interval):.2f}; {counted}"
        )
        await crowd.drain()
        await assert_nothing_kept(queue)
    assert connections <= 20
    assert said / (2 * interval) < 20
    assert sum(counted.values()) / (2 * interval) < 20


async def test_connections_do_not_grow_with_the_calls(queue: Queue, redis_server: RedisServer) -> None:
    """One for commands and one for wake-ups, with nobody and with 500 waiters on ten queues."""
    before = redis_server.connections()
    go = asyncio.Event()

    async def call(number: int) -> None:
        async with queue.slot(f"queue-{number % 10}", max_concurrent=1):
            await go.wait()

    tasks = [asyncio.create_task(call(number)) for number in range(510)]

    async def all_wait() -> bool:
        return sum([(await queue.stats(f"queue-{n}")).waiting for n in range(10)]) == 500

    await wait_until(all_wait, "500 wait")
    after = redis_server.connections()
    go.set()
    await asyncio.gather(*tasks)
    assert after == before
