"""The committed rules on two workers behind one port, in multiprocess mode.

What a single process shows, these must show, too, and nothing else: of a paused queue only that it is
paused, a line that is stuck, a worker that was killed, and Redis out of reach while nobody calls.
`tests/dashboards/live_run.py` shortens the windows.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from genesis import Queue, RedisBackend
from genesis.observability import Telemetry, names
from tests.dashboards.live_run import SCRAPES, shortened_rules
from tests.hosts.web import PATIENCE, SHORT_LEASE, WebServer
from tests.support.observers import Prometheus
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Prometheus.available(), reason=Prometheus.MISSING),
]

LIMIT = 2  # of the example
FOR_A_WHILE = (
    12  # seconds; longer than any window of the shortened rules but those of the service level
)


@pytest.fixture
async def server(own_redis: RedisServer, tmp_path: Path) -> AsyncIterator[WebServer]:
    app = "tests.hosts.web:create_impatient_app"
    async with WebServer("uvicorn", own_redis.url, tmp_path, app) as running:
        yield running


@pytest.fixture
def prometheus(server: WebServer) -> Iterator[Prometheus]:
    program = Prometheus([server.port], shortened_rules(), SCRAPES)
    yield program
    program.close()


@pytest.fixture
async def operator(own_redis: RedisServer) -> AsyncIterator[Queue]:
    backend = RedisBackend(own_redis.url, lease=SHORT_LEASE)
    async with Queue(backend, telemetry=Telemetry(CollectorRegistry())) as queue:
        yield queue


async def test_only_a_pause_a_stuck_queue_and_a_killed_worker_raise_alerts(
    server: WebServer, prometheus: Prometheus, operator: Queue, own_redis: RedisServer
) -> None:
    async def seen(expression: str, description: str, timeout: float = 30.0) -> None:
        async def is_there() -> bool:
            return bool(await asyncio.to_thread(prometheus.query, expression))

        await wait_until(is_there, description, timeout)

    async def fires(alert: str, queue_id: str) -> None:
        alerts = f'ALERTS{{alertname="{alert}",alertstate="firing",queue="{queue_id}"}}'
        await seen(alerts, f"{alert} fires for {queue_id}", 45.0)

    # A paused queue: callers time out all the time, and others wait.
    await operator.set_limit("paused", 0)
    paused = asyncio.create_task(keep_calling(server, "paused"))
    waits = f'count_over_time((sum(genesis_queue_waiting{{queue="paused"}}) > 0)[{FOR_A_WHILE}s:1s])'
    await seen(f"{waits} >= {FOR_A_WHILE - 1}", "callers have waited for a while", 40.0)
    limit = 'count_over_time((max(genesis_queue_limit{queue="paused"}) == 0)[5s:500ms])'
    await seen(f"{limit} >= 9", "the limit is shown all the time")
    await fires("GenesisPaused", "paused")
    others = 'ALERTS{alertstate="firing",alertname!="GenesisPaused"}'
    assert await asyncio.to_thread(prometheus.query, others) == []

    # A line that is stuck: see `LiveRun.set_the_clock_back`.
    held = [server.call(f"held-{number}", 100, "stuck") for number in range(LIMIT)]
    await server.stands(0, LIMIT, "stuck")
    stuck = asyncio.create_task(keep_calling(server, "stuck"))
    await seen('max(genesis_queue_depth{queue="stuck"}) > 1', "some wait")
    meta = "genesis:queue:{stuck}:meta"
    own_redis.client.flushall()
    await wait_until(lambda: own_redis.client.hget(meta, "until"), "the recovery has begun")
    moment: Any = own_redis.client.time()
    own_redis.client.hset(meta, "until", str((moment[0] + 15) * 1_000_000))
    for each in held:
        each.cancel()
    await fires("GenesisStuckHead", "stuck")
    own_redis.client.hdel(meta, "until")
    stuck.cancel()

    others = 'ALERTS{queue="paused",alertstate="firing",alertname!="GenesisPaused"}'
    silent = f"max_over_time({others}[5m])"
    assert await asyncio.to_thread(prometheus.query, silent) == []

    # A worker that is killed while its call holds: the other worker reclaims the slot.
    doomed = server.call("doomed", 100, "fragile")
    await server.stands(0, 1, "fragile")
    (entry,) = (await server.line("fragile"))["entries"]
    waiting = [server.call(f"other-{number}", 100, "fragile") for number in range(3)]

    async def both_have_calls() -> bool:
        # The kernel chooses who accepts a connection; a worker without calls takes nothing back.
        waiting.append(server.call(f"more-{len(waiting)}", 100, "fragile"))
        return len({e["instance_id"] for e in (await server.line("fragile"))["entries"]}) == 2

    await wait_until(both_have_calls, "both workers have calls")
    await seen('sum(genesis_queue_holding{queue="fragile"}) == 2', "both slots are held")
    os.kill(int(entry["instance_id"].split("-")[-2]), signal.SIGKILL)
    await fires("GenesisReclaims", "fragile")
    shown = 'sum(genesis_queue_holding{queue="fragile"}) == max(genesis_queue_in_use{queue="fragile"})'
    await seen(shown, "no call of the dead is shown any more")

    for task in (paused, doomed, *waiting):
        task.cancel()
    await asyncio.gather(paused, stuck, doomed, *held, *waiting, return_exceptions=True)
    await operator.set_limit("paused", None)


async def test_workers_that_nobody_calls_tell_that_redis_is_away(
    server: WebServer, prometheus: Prometheus, own_redis: RedisServer
) -> None:
    """A gauge in files, written by what the workers see; and it is over once Redis is back."""
    firing = 'count(ALERTS{alertname="GenesisBackendUnavailable",alertstate="firing"})'

    async def fires() -> bool:
        return bool(await asyncio.to_thread(prometheus.query, firing))

    async def is_over() -> bool:
        return not await fires()

    up = f"min({names.BACKEND_UP})"
    await wait_until(lambda: prometheus.value(up) == 1, "a worker has reached Redis")
    own_redis.kill()
    await wait_until(fires, "GenesisBackendUnavailable fires", 30.0)
    failed = 'sum(genesis_backend_operation_seconds_count{outcome=~"unavailable|error"}) > 0'
    assert await asyncio.to_thread(prometheus.query, failed) == []  # nothing was asked of it
    own_redis.start()
    await wait_until(is_over, "it is over", 30.0)


async def keep_calling(server: WebServer, queue_id: str) -> None:
    """A caller every half second; each waits until it is refused. They hang up when this ends."""
    calls = []
    try:
        for number in range(1000):
            calls.append(server.call(f"{queue_id}-{number}", 0.1, queue_id))
            await asyncio.sleep(PATIENCE / 12)  # the rate of arrivals
    finally:
        for each in calls:
            each.cancel()
