"""How to test an application that uses a queue: with the memory backend, and without a server.

    python -m pytest examples/testing_an_application.py

`InMemoryBackend` keeps the same promises as `RedisBackend`; one test suite checks both. Pass the
`Queue` to the application as an argument, and give each test its own queue.
"""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry

from genesis import Queue, QueueFullError, QueueTimeoutError
from genesis.observability import Telemetry

# The application -----------------------------------------------------------------------------------


async def answer(queue: Queue, caller: str, talk: asyncio.Event) -> str:
    """Serve a caller. `talk` is set when the conversation is over."""
    try:
        async with queue.slot("sales", item_id=caller, max_concurrent=1, timeout=60, max_waiting=1):
            await talk.wait()
            return "served"
    except QueueTimeoutError:
        return "sorry"
    except QueueFullError:
        return "busy"


# Its tests -----------------------------------------------------------------------------------------


async def stands(queue: Queue, waiting: int, in_use: int) -> None:
    """Wait for a state, not for a length of time."""
    for _ in range(1000):
        stats = await queue.stats("sales")
        if (stats.waiting, stats.in_use) == (waiting, in_use):
            return
        await asyncio.sleep(0)  # the other tasks run
    raise AssertionError(f"{stats.waiting} wait and {stats.in_use} hold")


def test_the_second_caller_waits_for_the_first() -> None:
    async def story() -> None:
        async with Queue() as queue:
            talk = asyncio.Event()
            first = asyncio.create_task(answer(queue, "first", talk))
            await stands(queue, waiting=0, in_use=1)
            second = asyncio.create_task(answer(queue, "second", talk))
            await stands(queue, waiting=1, in_use=1)
            assert await queue.position("sales", "second") == 1
            talk.set()
            assert [await first, await second] == ["served", "served"]

    asyncio.run(story())


def test_a_caller_who_hangs_up_makes_room() -> None:
    async def story() -> None:
        async with Queue() as queue:
            caller = asyncio.create_task(answer(queue, "caller", asyncio.Event()))
            await stands(queue, waiting=0, in_use=1)
            caller.cancel()  # your framework does this when the caller hangs up
            await stands(queue, waiting=0, in_use=0)

    asyncio.run(story())


def test_a_full_line_is_busy() -> None:
    async def story() -> None:
        async with Queue() as queue, queue.slot("sales", max_concurrent=1):  # the test holds the slot
            waiting = asyncio.create_task(answer(queue, "waiting", asyncio.Event()))
            await stands(queue, waiting=1, in_use=1)
            assert await answer(queue, "late", asyncio.Event()) == "busy"
            waiting.cancel()

    asyncio.run(story())


def test_what_the_metrics_say() -> None:
    """The test uses its own registry, so that other tests do not count."""
    registry = CollectorRegistry()

    async def story() -> None:
        async with Queue(telemetry=Telemetry(registry=registry)) as queue:
            talk = asyncio.Event()
            talk.set()
            assert await answer(queue, "caller", talk) == "served"

    asyncio.run(story())
    labels = {"queue": "sales", "outcome": "granted"}
    assert registry.get_sample_value("genesis_queue_wait_seconds_count", labels) == 1
