"""What a break costs an instance that has much: `python -m tests.benchmarks.recovery [--loop uvloop]`.

1. One queue with 10,000 waiting tickets: its connection breaks. Time until Redis has confirmed all of
   them, the longest script, commands sent.
2. 20,000 queues of one ticket each: its connection breaks. Time until Redis has confirmed all of them,
   the longest stall of the event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.observability import Telemetry
from genesis.queue import RedisBackend
from tests.support.fleet import LoopWatch
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

LEASE = 15.0  # seconds, the default
WAITING = 10_000
QUEUES = 20_000


def _queue(server: RedisServer) -> Queue:
    backend = RedisBackend(server.url, lease=LEASE, operation_timeout=LEASE)
    return Queue(backend, telemetry=Telemetry(registry=CollectorRegistry()))


def _cores(queue: Queue) -> list[Any]:
    backend: Any = queue._backend
    return list(backend._inner._driver.queues.values())


async def _break(server: RedisServer, queue: Queue) -> tuple[float, LoopWatch]:
    """Break the connection; seconds until every queue is confirmed on a new one."""
    rest = [(core, core.session) for core in _cores(queue)]

    def confirmed() -> bool:
        while rest:
            core, session = rest[-1]
            if not (core.up and core.session > session and core.confirmed == core.session):
                return False
            rest.pop()
        return True

    client: Any = server.client
    client.config_set("slowlog-log-slower-than", 0)
    client.config_set("slowlog-max-len", 100_000)
    client.slowlog_reset()
    client.config_resetstat()
    async with LoopWatch() as watch:
        began = time.perf_counter()
        await asyncio.to_thread(client.client_kill_filter, _type="pubsub")
        await wait_until(confirmed, "all is confirmed", 120)
        took = time.perf_counter() - began
    return took, watch


async def one_long_line(server: RedisServer) -> None:
    queue = _queue(server)

    async def wait(number: int) -> None:
        async with queue.slot("line", item_id=f"item-{number}", max_concurrent=1):
            pass

    async def all_wait() -> bool:
        return (await queue.stats("line")).waiting == WAITING

    async with queue.slot("line", max_concurrent=1):
        tasks = []
        for start in range(0, WAITING, 1_000):
            tasks += [asyncio.create_task(wait(start + number)) for number in range(1_000)]
            await asyncio.sleep(0.05)  # the rate of arrivals
        await wait_until(all_wait, "all wait", 60)
        took, watch = await _break(server, queue)
        client: Any = server.client
        scripts = [row for row in client.slowlog_get(100_000) if row["command"].startswith(b"EVALSHA")]
        sent = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        longest = max(row["duration"] for row in scripts) / 1e3
        print(
            f"{WAITING:,} waiting tickets: confirmed {took * 1e3:.0f} ms after the break, "
            f"{sent} commands, longest script {longest:.1f} ms, "
            f"longest stall of the loop {watch.longest * 1e3:.0f} ms"
        )
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await queue.close()


async def many_queues(server: RedisServer) -> None:
    queue = _queue(server)
    inside: list[asyncio.Future[None]] = []

    async def hold(number: int) -> None:
        async with queue.slot(f"queue-{number}", item_id="item", max_concurrent=1):
            inside.append(asyncio.get_running_loop().create_future())
            await inside[-1]

    tasks = []
    for start in range(0, QUEUES, 1_000):
        tasks += [asyncio.create_task(hold(start + number)) for number in range(1_000)]
        await wait_until(lambda start=start: len(inside) == start + 1_000, "they hold", 60)
    took, watch = await _break(server, queue)
    client: Any = server.client
    stats = client.info("commandstats")["cmdstat_evalsha"]
    print(
        f"{QUEUES:,} queues of one ticket: confirmed {took:.2f} s after the break, "
        f"{stats['calls']:,} commands, {stats['usec'] / 1e6:.2f} s of Redis, "
        f"longest stall of the loop {watch.longest * 1e3:.0f} ms"
    )
    for future in inside:
        future.set_result(None)
    await asyncio.gather(*tasks)
    await queue.close()


async def main() -> None:
    server = RedisServer()
    try:
        await one_long_line(server)
        server.client.flushall()
        await many_queues(server)
    finally:
        server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    if parser.parse_args().loop == "uvloop":
        uvloop.run(main())
    else:
        asyncio.run(main())
