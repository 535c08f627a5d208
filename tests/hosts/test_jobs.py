"""Hosts without a web server: a plain job, child processes, several event loops in turn and at once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from genesis import Queue, RedisBackend
from genesis.observability import Telemetry
from tests.hosts.job import DONE, LIMIT, make, play, stands
from tests.hosts.numbers import Numbers, numbers
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
AT_ONCE = 4.0  # seconds; a heartbeat comes every 5


@pytest.mark.parametrize(("how", "processes"), [("plain", 1), ("spawn", 2), ("fork", 2)])
async def test_jobs_count_what_they_did_and_hand_over_on_sigterm(
    how: str, processes: int, redis_server: RedisServer
) -> None:
    """`asyncio.run`, and children that were spawned or forked with a Queue that nobody had used."""
    command = [sys.executable, "-m", "tests.hosts.job", redis_server.url, how]
    running = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    assert running.stdout is not None

    async def report() -> Any:
        assert running.stdout is not None
        return json.loads(await asyncio.wait_for(running.stdout.readline(), 30))

    reports = [await report() for _ in range(processes)]
    assert [Numbers(*each["done"]) for each in reports] == [DONE] * processes
    assert len({each["instance_id"] for each in reports}) == processes
    outside, _ = make(redis_server.url)
    async with outside:
        for each in reports:
            granted = [asyncio.Event() for _ in range(LIMIT)]
            tasks = [asyncio.create_task(enter(outside, each["queue_id"], event)) for event in granted]
            await stands(outside, each["queue_id"], LIMIT, LIMIT)
            os.kill(each["pid"], signal.SIGTERM)
            await asyncio.wait_for(asyncio.gather(*(event.wait() for event in granted)), AT_ONCE)
            await asyncio.gather(*tasks)
            assert await report() == {"ended": each["queue_id"]}
            await stands(outside, each["queue_id"], 0, 0)
    assert await asyncio.wait_for(running.wait(), 20) == 0


async def enter(queue: Queue, queue_id: str, granted: asyncio.Event) -> None:
    async with queue.slot(queue_id, max_concurrent=LIMIT):
        granted.set()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a loop that ended has left its connection open
def test_a_loop_for_each_test(redis_server: RedisServer) -> None:
    """One Queue in several loops in turn; slots held at the end of a loop are given back at once."""
    queue, registry = make(redis_server.url)  # the module-level state of an application

    async def test(turn: int) -> None:
        began = time.monotonic()
        await play(queue, "tests")  # finds the slots free, though the last turn left one held
        assert time.monotonic() - began < AT_ONCE
        left = turn - 1
        expected = DONE._replace(
            granted=turn * DONE.granted + left,
            cancelled=turn * DONE.cancelled,
            released=turn * DONE.released + left,
            entered=turn * DONE.entered + left,
        )
        assert numbers(generate_latest(registry).decode(), "tests") == expected
        if turn == 3:
            await queue.close()
            return
        granted = asyncio.Event()
        held.append(asyncio.create_task(hold_for_ever(queue, granted)))
        await granted.wait()

    held: list[asyncio.Task[None]] = []  # cancelled by the runner, when the test is over
    for turn in (1, 2, 3):
        asyncio.run(test(turn))


async def hold_for_ever(queue: Queue, granted: asyncio.Event) -> None:
    async with queue.slot("tests", max_concurrent=LIMIT):
        granted.set()
        await asyncio.Event().wait()


class LoopInThread:
    """A thread with its own event loop and Queue, on a shared registry."""

    def __init__(self, url: str, telemetry: Telemetry) -> None:
        self._ready = threading.Event()
        self._failure: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(url, telemetry))
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self, url: str, telemetry: Telemetry) -> None:
        async def live() -> None:
            self.loop = asyncio.get_running_loop()
            self.task = asyncio.current_task()
            async with Queue(RedisBackend(url), telemetry=telemetry) as self.queue:
                self._ready.set()
                await asyncio.Event().wait()

        try:
            asyncio.run(live())
        except asyncio.CancelledError:
            return
        except BaseException as error:
            self._failure.append(error)

    async def do(self, what: Callable[[Queue], Any]) -> Any:
        """Run a coroutine there; wait for it here."""
        future = asyncio.run_coroutine_threadsafe(what(self.queue), self.loop)
        return await asyncio.wrap_future(future)

    def start(self, what: Callable[[Queue], Any]) -> None:
        asyncio.run_coroutine_threadsafe(what(self.queue), self.loop)

    async def end(self) -> None:
        assert self.task is not None
        self.loop.call_soon_threadsafe(self.task.cancel)
        await asyncio.to_thread(self._thread.join, 10)
        assert not self._thread.is_alive()
        assert self._failure == []


async def test_two_loops_in_threads_share_a_line_and_a_registry(redis_server: RedisServer) -> None:
    """Their calls are counted together, and a loop that ends hands its slots to the other."""
    registry = CollectorRegistry()
    telemetry = Telemetry(registry)
    one, two = (LoopInThread(redis_server.url, telemetry) for _ in range(2))

    def counted() -> Numbers:
        return numbers(generate_latest(registry).decode(), "calls")

    async def calls(queue: Queue) -> None:
        async def call() -> None:
            async with queue.slot("calls", max_concurrent=LIMIT):
                await asyncio.sleep(0)

        await asyncio.gather(*(call() for _ in range(100)))

    await asyncio.gather(one.do(calls), two.do(calls))
    assert counted() == Numbers(granted=200, released=200, entered=200)

    async def holds(queue: Queue) -> None:
        async with queue.slot("calls", max_concurrent=LIMIT), queue.slot("calls"):
            await asyncio.Event().wait()

    async def waits(queue: Queue) -> None:
        async with queue.slot("calls", max_concurrent=LIMIT, timeout=AT_ONCE):
            pass

    one.start(holds)
    await wait_until(lambda: counted().holding == LIMIT, "one loop has both slots")
    waiting = asyncio.ensure_future(two.do(waits))
    await wait_until(lambda: counted().waiting == 1, "the other waits")
    await one.end()
    await waiting
    await two.end()
    # Its Queue was closed under the two calls: their slots were lost to them, and are counted so.
    assert counted() == Numbers(granted=203, released=201, lost=2, entered=203)
