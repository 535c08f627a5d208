"""The FastAPI example under common servers, in two workers over one Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from genesis import Queue, RedisBackend
from genesis.observability import Telemetry
from tests.hosts.numbers import Numbers
from tests.hosts.web import GRACE, SERVERS, WebServer
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

CALLS = 20
LIMIT = 2  # of the example
LEASE = 15.0  # seconds, of the example; what takes less was handed over, and not taken back


@pytest.fixture(params=SERVERS)
async def server(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path
) -> AsyncIterator[WebServer]:
    async with WebServer(request.param, redis_server.url, tmp_path) as running:
        yield running


@pytest.fixture
async def outside(redis_server: RedisServer) -> AsyncIterator[Queue]:
    """Another instance, in another process than the server's."""
    async with Queue(RedisBackend(redis_server.url), telemetry=Telemetry(CollectorRegistry())) as queue:
        yield queue


async def test_it_serves_counts_lets_go_and_hands_over(server: WebServer, outside: Queue) -> None:
    """One server for four checks, because its start takes most of the time."""
    await calls_are_served_and_counted(server)
    await two_workers_share_the_line(server)
    await who_hangs_up_makes_room(server)
    await a_server_that_stops_loses_nothing(server, outside)


async def calls_are_served_and_counted(server: WebServer) -> None:
    """Each of many at once; and the workers' metrics together say exactly that."""
    calls = [server.call(f"call-{number}", 0.02) for number in range(CALLS)]
    assert [status for status, _ in await asyncio.gather(*calls)] == [200] * CALLS
    expected = Numbers(granted=CALLS, released=CALLS, entered=CALLS)
    assert await server.numbers() == expected


async def two_workers_share_the_line(server: WebServer) -> None:
    """Calls on both are in one line, with one limit."""
    calls: list[asyncio.Task[tuple[int, bytes]]] = []

    async def both_are_there() -> bool:
        calls.append(server.call(f"shared-{len(calls)}", 60))
        entries = (await server.line())["entries"]
        return len({entry["instance_id"] for entry in entries}) == 2

    await wait_until(both_are_there, "a call on either worker")
    await server.stands(max(0, len(calls) - LIMIT), min(len(calls), LIMIT))
    for each in calls:
        each.cancel()
    await server.stands(0, 0)


async def who_hangs_up_makes_room(server: WebServer) -> None:
    """A waiter's place and a holder's slot are free at once, and both are counted."""
    before = await server.numbers()
    holders = [server.call(f"holder-{number}", 60) for number in range(LIMIT)]
    await server.stands(0, LIMIT)
    one, two = [server.call(f"waiter-{number}", 0) for number in range(2)]
    await server.stands(2, LIMIT)
    one.cancel()
    await server.stands(1, LIMIT)
    holders[0].cancel()
    assert (await two)[0] == 200
    await server.stands(0, 1)
    holders[1].cancel()
    await server.stands(0, 0)
    after = await server.numbers()
    assert after == before._replace(
        granted=before.granted + 3,
        cancelled=before.cancelled + 1,
        released=before.released + 3,
        entered=before.entered + 4,
    )


async def a_server_that_stops_loses_nothing(server: WebServer, outside: Queue) -> None:
    """SIGTERM: requests that can finish do, the others are cut off; the slots pass on at once."""
    gate, long = server.call("gate", 600), server.call("long", 600)
    await server.stands(0, LIMIT)
    short = server.call("short", 0.2)
    await server.stands(1, LIMIT)
    waiter = server.call("after-short", 0)
    await server.stands(2, LIMIT)
    granted: list[float] = []

    async def enter(number: int) -> None:
        async with outside.slot("calls", item_id=f"outside-{number}", max_concurrent=LIMIT):
            granted.append(time.monotonic())
            await everybody.wait()

    everybody = asyncio.Event()
    others = [asyncio.create_task(enter(number)) for number in range(2)]
    await server.stands(4, LIMIT)
    server.terminate()
    began = time.monotonic()
    gate.cancel()
    assert (await short)[0] == 200
    assert (await waiter)[0] == 200
    await wait_until(lambda: len(granted) == 1, "the slot that came free went outside", GRACE / 2)
    await wait_until(lambda: len(granted) == 2, "so did that of the call that was cut off")
    assert granted[1] - began < GRACE + 2 < LEASE
    assert (await long)[0] == 503
    await server.ended()
    log = server.log.read_text()
    assert log.count("Application shutdown complete") == 2, log
    assert "timeout graceful shutdown exceeded" in log
    assert "Traceback (most recent call last)" not in log, log
    everybody.set()
    await asyncio.gather(*others)
    stats = await outside.stats("calls")
    assert (stats.waiting, stats.in_use) == (0, 0)
