"""Abandoned calls: the garbage collector closes them, wherever it runs.

asyncio holds its tasks weakly, and `gc.set_threshold` decides at which allocation the collector runs:
in the middle of another call's step, at each of its allocations in turn.
"""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.backends.protocol import QueueBackend
from genesis.observability import Telemetry
from genesis.queue import InMemoryBackend, RedisBackend
from tests.conftest import assert_nothing_kept, state_of
from tests.support.waiting import quiesce, wait_until

# "coroutine ignored GeneratorExit" and the like, which python only prints
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")

ALLOCATIONS = 60  # more than in one step


@pytest.fixture(autouse=True)
def _usual_collector() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.enable()


async def forget(queue: Queue, enter: Callable[[], Any]) -> None:
    """A task holds a slot and waits for a future; nothing refers to either."""
    in_use = (await queue.stats("sales")).in_use

    async def hold() -> None:
        async with enter():
            await asyncio.get_running_loop().create_future()

    async def holds() -> bool:
        return (await queue.stats("sales")).in_use > in_use

    asyncio.get_running_loop().create_task(hold())
    await wait_until(holds, "it holds")


async def collect_in(step: Awaitable[Any], allocations: int) -> None:
    """Take a step in which the garbage collector runs once, after this many allocations."""
    gc.set_threshold(gc.get_count()[0] + allocations, 1000, 1000)
    gc.enable()
    try:
        await step
    finally:
        gc.disable()


@pytest.mark.parametrize(("step", "limit"), [("enter", 1), ("enter", 2), ("leave", 2)])
async def test_a_forgotten_call_is_closed_in_the_middle_of_another_s_step(
    step: str, limit: int
) -> None:
    """No slot stays free while a call waits, none is granted twice, and no call is evicted."""
    for allocations in range(ALLOCATIONS):
        gc.collect()
        gc.disable()
        async with Queue(telemetry=Telemetry(CollectorRegistry())) as queue:
            others = [queue.slot("sales", max_concurrent=limit) for _ in range(limit - 1)]
            for other in others:
                await other.__aenter__()
            await forget(queue, partial(queue.slot, "sales", max_concurrent=limit))
            inside = 0
            go = asyncio.Event()

            async def call(queue: Queue = queue, go: asyncio.Event = go) -> None:
                nonlocal inside
                async with queue.slot("sales", max_concurrent=limit):
                    inside += 1
                    assert inside <= limit
                    await go.wait()
                    inside -= 1

            calls = [asyncio.create_task(call())]
            if step == "enter":
                await collect_in(quiesce(), allocations)
            else:
                await quiesce()
                await collect_in(others.pop().__aexit__(None, None, None), allocations)
            calls += [asyncio.create_task(call()) for _ in range(2)]
            await quiesce()
            gc.collect()
            await quiesce()
            stats = await queue.stats("sales")
            assert (stats.waiting, stats.in_use) == (3 - (limit - len(others)), limit), allocations
            go.set()
            await asyncio.gather(*calls)
            for other in others:
                await other.__aexit__(None, None, None)
            await assert_nothing_kept(queue)


@pytest.mark.parametrize("how", ["slot", "semaphore"])
@pytest.mark.parametrize("where", ["thread", "callback"])
async def test_a_forgotten_call_is_closed_outside_of_all_tasks(
    queue: Queue, how: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a scrape that triggers the garbage collector: the slot soon goes to the next waiter."""
    gc.collect()
    gc.disable()
    semaphore = queue.semaphore("sales", 1)

    def enter() -> Any:
        return queue.slot("sales", max_concurrent=1) if how == "slot" else semaphore

    await forget(queue, enter)

    async def call() -> None:
        async with enter():
            pass

    waiter = asyncio.create_task(call())
    await wait_until(lambda: _waits(queue), "it waits")
    if where == "thread":
        await asyncio.to_thread(gc.collect)
    else:
        asyncio.get_running_loop().call_soon(gc.collect)
    await asyncio.wait_for(waiter, 2)
    assert not [each for each in caplog.records if each.name == "opentelemetry.context"]
    await assert_nothing_kept(queue)


@pytest.mark.parametrize("how", ["slot", "semaphore"])
async def test_a_generator_that_is_closed_gives_its_slot_back(queue: Queue, how: str) -> None:
    """In the next iteration of the loop, whether it holds or waits, closed or dropped; no warning."""
    semaphore = queue.semaphore("sales", 1)

    def enter() -> Any:
        return queue.slot("sales", max_concurrent=1) if how == "slot" else semaphore

    async def hold() -> AsyncIterator[int]:
        async with enter():
            yield 1
            yield 2

    async def wait() -> None:
        async with enter():
            pytest.fail("entered")

    async for _ in hold():
        break
    generator = hold()
    await asyncio.wait_for(anext(generator), 5)
    await generator.aclose()  # type: ignore[attr-defined]
    async with enter():
        waiting = wait()
        waiting.send(None)  # a coroutine without a task
        await wait_until(lambda: _waits(queue), "it waits")
        waiting.close()
        await quiesce()
        assert (await queue.stats("sales"))[:2] == (0, 1)
    await assert_nothing_kept(queue)


async def _waits(queue: Queue) -> bool:
    return (await queue.stats("sales")).waiting == 1


def _in_memory(request: pytest.FixtureRequest) -> QueueBackend:
    return InMemoryBackend()


def _over_redis(request: pytest.FixtureRequest) -> QueueBackend:
    return RedisBackend(request.getfixturevalue("redis_server").url, lease=600.0)


@pytest.mark.parametrize("make", [_in_memory, _over_redis])
def test_calls_of_a_closed_loop_are_closed_without_an_error(
    request: pytest.FixtureRequest, make: Callable[[pytest.FixtureRequest], QueueBackend]
) -> None:
    """One holds, one waits and is watched. Nothing is kept of them, and another loop can be used."""
    queue = Queue(make(request), telemetry=Telemetry(CollectorRegistry()))

    async def call(slot: Any) -> None:
        async with slot:
            await asyncio.get_running_loop().create_future()

    async def use_and_close() -> None:
        async with queue, queue.slot("support"):
            pass

    async def begin() -> None:
        slots = [queue.slot("sales", max_concurrent=1) for _ in range(2)]
        watches = [slots[1].watch(), queue.watch("sales", "other")]
        work = [*map(call, slots), *map(anext, watches)]
        tasks.extend(map(asyncio.ensure_future, work))
        await tasks[2]  # it waits
        tasks[2] = asyncio.ensure_future(anext(watches[0]))
        await quiesce()

    tasks: list[asyncio.Future[Any]] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the connection was not closed
        loop.close()
        tasks.clear()
        gc.collect()
        asyncio.run(use_and_close())
        gc.collect()
    assert not state_of(queue)


_caller: ContextVar[Any] = ContextVar("_caller")


@pytest.mark.parametrize("make", [_in_memory, _over_redis])
async def test_a_backend_s_timers_and_tasks_keep_no_call_s_context(
    request: pytest.FixtureRequest, make: Callable[[pytest.FixtureRequest], QueueBackend]
) -> None:
    """An application might keep a call's task in its context: the context must not outlive the call."""
    async with Queue(make(request), telemetry=Telemetry(CollectorRegistry())) as queue:

        def enter() -> Any:  # in the task that holds: the first that the backend sees
            _caller.set(asyncio.current_task())
            return queue.slot("sales")

        async def hold() -> None:
            async with enter():
                inside.set()
                await asyncio.get_running_loop().create_future()

        inside = asyncio.Event()
        asyncio.get_running_loop().create_task(hold())
        await inside.wait()
        await quiesce()

        async def all_left() -> bool:
            gc.collect()
            return (await queue.stats("sales")).in_use == 0

        await wait_until(all_left, "the forgotten call has left")
