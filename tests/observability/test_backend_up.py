"""`genesis_backend_up`: it follows the backend's events, with or without calls."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from genesis import BackendUnavailableError, Queue
from genesis.backends.protocol import Disrupted, Recovered
from genesis.observability import Telemetry, names
from genesis.observability.layer import ObservedBackend
from genesis.queue import InMemoryBackend, RedisBackend
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

LEASE = 1.0

Up = Callable[[str], "float | None"]


@pytest.fixture
def up(registry: CollectorRegistry) -> Up:
    return lambda kind: registry.get_sample_value(names.BACKEND_UP, {"backend": kind})


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_it_is_there_from_the_first_answer_until_the_close(
    telemetry: Telemetry, up: Up, redis_server: RedisServer, kind: str
) -> None:
    """There is no series before the first contact, or after the end."""
    backend = InMemoryBackend() if kind == "memory" else RedisBackend(redis_server.url, lease=LEASE)
    queue = Queue(backend, telemetry=telemetry)
    assert up(kind) is None
    await queue.drain(0)  # succeeds without contact to the backend
    assert up(kind) is None
    await queue.ping()
    assert up(kind) == 1
    await queue.close()
    assert up(kind) is None


async def test_a_slot_left_after_the_close_does_not_bring_it_back(telemetry: Telemetry, up: Up) -> None:
    """Its `leave` succeeds without a reply of the backend."""
    queue = Queue(telemetry=telemetry)
    async with queue.slot("sales"):
        assert up("memory") == 1
        await queue.close()
    assert up("memory") is None


async def test_a_fleet_without_calls_reports_an_outage_of_redis(
    own_redis: RedisServer, telemetry: Telemetry, up: Up
) -> None:
    """Killed, or silent with open connections; and its return, with or without its data."""
    async with Queue(RedisBackend(own_redis.url, lease=LEASE), telemetry=telemetry) as queue:
        await queue.ping()
        own_redis.kill()
        await wait_until(lambda: up("redis") == 0, "its end is seen")
        own_redis.start()
        await wait_until(lambda: up("redis") == 1, "it is reached again")
        own_redis.pause()
        await wait_until(lambda: up("redis") == 0, "its silence is seen")
        own_redis.resume()
        await wait_until(lambda: up("redis") == 1, "it answers again")


async def test_a_redis_that_was_never_reached_is_reported(
    own_redis: RedisServer, telemetry: Telemetry, up: Up
) -> None:
    """From the first attempt, not from the first success."""
    own_redis.kill()
    async with Queue(RedisBackend(own_redis.url, lease=LEASE), telemetry=telemetry) as queue:
        with pytest.raises(ConnectionError):
            await queue.ping()
        assert up("redis") == 0
        own_redis.start()
        await wait_until(lambda: up("redis") == 1, "it is reached")


def test_a_backend_that_comes_into_another_event_loop_takes_its_outage_along(
    own_redis: RedisServer, telemetry: Telemetry, up: Up
) -> None:
    """The loop in which the outage began is closed: the outage ends in the next loop."""
    queue = Queue(RedisBackend(own_redis.url, lease=LEASE), telemetry=telemetry)

    async def goes_away() -> None:
        await queue.ping()
        own_redis.kill()
        await wait_until(lambda: up("redis") == 0, "its end is seen")

    async def is_back() -> None:
        await queue.ping()
        assert up("redis") == 1
        await queue.close()

    asyncio.run(goes_away())
    assert up("redis") == 0
    own_redis.start()
    asyncio.run(is_back())


async def test_data_that_was_lost_is_no_outage(
    own_redis: RedisServer, telemetry: Telemetry, registry: CollectorRegistry, up: Up
) -> None:
    """The event is momentary; no later event would end it."""
    lost = {"backend": "redis", "reason": "data_lost"}
    async with (
        Queue(RedisBackend(own_redis.url, lease=LEASE), telemetry=telemetry) as queue,
        queue.slot("sales"),
    ):
        own_redis.restart_empty()
        await wait_until(lambda: registry.get_sample_value(names.DISRUPTIONS, lost), "it is told")
        assert up("redis") == 1


@pytest.mark.parametrize(("rule", "reason"), [("-evalsha", "denied"), ("-zadd", "refused")])
async def test_a_right_that_was_taken_away_is_an_outage(
    own_redis: RedisServer,
    telemetry: Telemetry,
    registry: CollectorRegistry,
    up: Up,
    rule: str,
    reason: str,
) -> None:
    """Heartbeats are rejected. Redis names the cause only if the script itself may not run."""
    queue = Queue(RedisBackend(own_redis.url, lease=LEASE), telemetry=telemetry)
    async with queue, queue.slot("sales"):
        own_redis.client.acl_setuser("default", enabled=True, commands=[rule])
        await wait_until(lambda: up("redis") == 0, "it is told")
    counted = {"backend": "redis", "reason": reason}
    assert registry.get_sample_value(names.DISRUPTIONS, counted) == 1


async def test_out_of_memory_is_no_outage(
    own_redis: RedisServer, telemetry: Telemetry, registry: CollectorRegistry, up: Up
) -> None:
    """Heartbeats pass. The calls that cannot enter are counted as operations."""
    queue = Queue(RedisBackend(own_redis.url, lease=LEASE), telemetry=telemetry)

    def count(operation: str, outcome: str) -> float:
        labels = {"backend": "redis", "operation": operation, "outcome": outcome}
        return registry.get_sample_value(f"{names.OPERATION_SECONDS}_count", labels) or 0.0

    async with queue, queue.slot("sales", max_concurrent=2):
        own_redis.client.config_set("maxmemory", 1)
        beats = count("heartbeat", "ok")
        with pytest.raises(BackendUnavailableError):
            await queue.slot("sales").__aenter__()
        await wait_until(lambda: count("heartbeat", "ok") > beats + 1, "two heartbeats have passed")
        assert up("redis") == 1
        assert count("enter", "unavailable") == 1


async def test_one_of_two_that_is_away_counts_until_it_is_back_or_closed_or_forgotten(
    telemetry: Telemetry, up: Up
) -> None:
    """They share a label, and the other backend's events do not hide the outage."""
    inner = [InMemoryBackend() for _ in range(3)]
    layers = [ObservedBackend(each, telemetry, "1.2.3") for each in inner]
    for layer in layers:
        await layer.ping()
    assert up("memory") == 1
    for each in inner:
        each._emit(Disrupted("connection", "refused"))
    await layers[0].stats("sales")  # an answer of a kind that was not there before
    assert up("memory") == 0
    inner[0]._emit(Recovered(1.0))
    assert up("memory") == 0
    await layers[1].close()
    assert up("memory") == 0
    del inner[2], layers[2], each, layer
    gc.collect()
    assert up("memory") == 1


# Several processes -----------------------------------------------------------------------------------
WORKER = """
import asyncio, gc, os, sys
from genesis import Queue
from genesis.backends.protocol import Disrupted, Recovered
from genesis.observability.http import _metrics
from prometheus_client import REGISTRY
from tests.support.waiting import wait_until

def lines():
    text = _metrics(REGISTRY, "").body.decode()
    return [line for line in text.splitlines() if line.startswith("genesis_backend_up")]

def shown():
    print(*lines(), flush=True)

async def ask(queue):
    await queue.ping()

queue = Queue()
for step in sys.argv[1:]:
    if step == "ask":
        asyncio.run(ask(queue))
    elif step == "away":
        queue._backend._inner._emit(Disrupted("connection", "refused"))
    elif step == "back":
        queue._backend._inner._emit(Recovered(1.0))
    elif step == "forget":
        queue = None
        gc.collect()
        asyncio.run(wait_until(lambda: not lines(), "another thread has observed it"))
    elif step == "close":
        asyncio.run(queue.close())
    elif step == "fork":
        pid = os.fork()
        if pid:
            sys.exit(os.waitpid(pid, 0)[1])
    elif step == "show":
        shown()
    elif step == "stay":
        sys.stdin.readline()
"""

UP, AWAY = (f'{names.BACKEND_UP}{{backend="memory"}} {value}.0' for value in (1, 0))
NOTHING = ""


def worker(folder: Path, *steps: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, *steps],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
    )


@pytest.mark.parametrize(
    ("steps", "shown"),
    [
        ("show ask show", [NOTHING, UP]),
        ("ask away show back show", [AWAY, UP]),
        ("ask away close show", [NOTHING]),
        ("ask away forget show", [NOTHING]),
        # A server that loads the application before it forks.
        ("fork show ask show", [NOTHING, UP]),
    ],
)
def test_in_files_for_all_processes_it_is_the_same(
    tmp_path: Path, steps: str, shown: list[str]
) -> None:
    text, _ = worker(tmp_path, *steps.split()).communicate(timeout=60)
    assert text.splitlines() == shown


def test_of_several_processes_the_one_that_is_away_counts_while_it_lives(tmp_path: Path) -> None:
    away = worker(tmp_path, "ask", "away", "show", "stay")
    assert away.stdout is not None
    assert away.stdout.readline().strip() == AWAY
    text, _ = worker(tmp_path, "ask", "show").communicate(timeout=60)
    assert text.strip() == AWAY
    away.kill()
    away.communicate()
    text, _ = worker(tmp_path, "ask", "show").communicate(timeout=60)
    assert text.strip() == UP
