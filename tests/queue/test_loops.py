"""Queues in several event loops and threads, and thousands of calls in one iteration of a loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from genesis import Queue, QueueTimeoutError
from genesis.backends.protocol import BackendEvent, EnterRequest, EnterResult, Snapshot
from genesis.exceptions import (
    BackendUnavailableError,
)
from genesis.observability import Telemetry
from genesis.queue import (
    InMemoryBackend,
    RedisBackend,
    SlotRequest,
)
from genesis.queue.calls import Calls
from tests.conftest import state_of
from tests.support.waiting import quiesce, wait_until


@pytest.fixture
async def queue(telemetry: Telemetry) -> AsyncIterator[Queue]:
    async with Queue(telemetry=telemetry) as queue:
        yield queue


def use_in_a_thread(use: Callable[[], Coroutine[Any, Any, Any]]) -> Coroutine[Any, Any, Any]:
    return asyncio.to_thread(lambda: asyncio.run(use()))


async def test_a_memory_queue_in_two_loops_at_once_is_refused(queue: Queue) -> None:
    """While it has calls, another thread's loop gets an error; `lost` can be read in any thread."""

    async def enter() -> None:
        async with queue.slot("sales", max_concurrent=2):
            pytest.fail("entered")

    async with queue.slot("sales", max_concurrent=2) as slot:
        for use in (enter, partial(queue.stats, "sales"), partial(queue.entries, "support")):
            with pytest.raises(RuntimeError, match="another event loop"):
                await use_in_a_thread(use)
        with pytest.raises(RuntimeError, match="drain it there"):
            await use_in_a_thread(queue.drain)
        assert not queue.draining
        assert await asyncio.to_thread(lambda: slot.lost) is False
        assert (await queue.stats("sales"))[:2] == (0, 1)
    assert not state_of(queue)


def test_a_memory_queue_serves_several_loops_in_turn() -> None:
    """If a loop was closed while it had calls, they are dropped, together with their limit."""
    queue = Queue(telemetry=Telemetry(CollectorRegistry()))

    async def enter(limit: int) -> SlotRequest:
        request = queue.slot("sales", max_concurrent=limit, timeout=0)
        await request.__aenter__()
        assert (await queue.stats("sales"))[:3] == (0, 1, limit)
        return request

    async def call(limit: int) -> None:
        await (await enter(limit)).__aexit__(None, None, None)

    asyncio.run(call(1))
    asyncio.run(call(2))
    loop = asyncio.new_event_loop()
    left = loop.run_until_complete(enter(3))
    loop.close()
    asyncio.run(call(4))
    asyncio.run(left.__aexit__(None, None, None))  # too late, but harmless
    assert left.slot is None
    assert not state_of(queue)


def test_a_memory_queue_has_one_timer_however_often_its_loop_changes() -> None:
    """The timers of a loop that was left end, even if it is used again."""
    pending: Counter[asyncio.AbstractEventLoop] = Counter()

    class Counting(InMemoryBackend):
        heartbeat_interval = 0.01

        def _arm(self) -> None:
            super()._arm()
            assert self._loop is not None
            pending[self._loop] += 1

        def _tick(self, moves: int) -> None:
            pending[asyncio.get_running_loop()] -= 1
            super()._tick(moves)

    queue = Queue(Counting(), telemetry=Telemetry(CollectorRegistry()))

    async def use() -> None:
        async with queue.slot("sales"):
            pass

    async def hold() -> None:
        async with queue.slot("sales"):
            await wait_until(lambda: pending[loops[0]] == 1, "one timer is left", 5)

    loops = [asyncio.new_event_loop() for _ in range(2)]
    for loop in 10 * loops:
        loop.run_until_complete(use())
    loops[0].run_until_complete(hold())
    for loop in loops:
        loop.close()


def test_a_watch_of_a_closed_loop_disturbs_no_call_of_the_same_id() -> None:
    """Neither when the call waits, nor when it is granted a slot."""
    queue = Queue(telemetry=Telemetry(CollectorRegistry()))
    reading = queue.watch("sales", "call").__anext__()  # a coroutine without a task

    async def begin_to_watch() -> None:
        reading.send(None)
        await quiesce()  # until it has been polled

    async def call() -> None:
        for holds in (False, True):
            async with queue.slot("sales") if holds else nullcontext():
                calling = asyncio.create_task(enter())
                await quiesce()
            await calling

    async def enter() -> None:
        async with queue.slot("sales", item_id="call"):
            pass

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin_to_watch())
    loop.close()
    asyncio.run(call())
    assert not state_of(queue)
    reading.close()


async def test_one_backend_in_two_loops_is_refused_over_redis() -> None:
    """A RedisBackend belongs to the loop of its first use; another one gets a clear error."""
    backend = RedisBackend("redis://127.0.0.1:1", lease=0.3)
    with pytest.raises(BackendUnavailableError):
        await backend.ping()

    def elsewhere() -> None:
        asyncio.run(backend.ping())

    with pytest.raises(RuntimeError, match="event loop"):
        await asyncio.to_thread(elsewhere)
    await backend.close()


async def test_thousands_that_enter_in_one_turn_let_others_run_and_keep_their_order() -> None:
    """Some of them are cancelled meanwhile; a later call overtakes none."""
    most = 0

    class Counting(InMemoryBackend):
        entered = 0

        async def enter(self, request: EnterRequest) -> EnterResult:
            self.entered += 1
            return await super().enter(request)

    backend = Counting()
    queue = Queue(backend, telemetry=Telemetry(CollectorRegistry()))
    granted: list[int] = []

    async def call(number: int) -> None:
        async with queue.slot("sales", item_id=str(number), max_concurrent=1):
            granted.append(number)

    count = 5_000
    async with queue.slot("sales", item_id="holder", max_concurrent=1):
        tasks = [asyncio.create_task(call(number)) for number in range(count)]
        while backend.entered < 1 + count - 10:
            before = backend.entered
            await asyncio.sleep(0)
            if before <= 1_000 < backend.entered:
                for task in tasks[4_000:4_010]:
                    task.cancel()
            if backend.entered > 2_000 and len(tasks) == count:
                tasks.append(asyncio.create_task(call(count)))
            most = max(most, backend.entered - before)
    await asyncio.wait(tasks)
    assert granted == [*range(4_000), *range(4_010, count + 1)]
    assert most <= 500


@pytest.mark.parametrize("busy", [False, True])
async def test_the_turns_for_which_an_entry_is_held_up_count_for_its_timeout(
    monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    """After the deadline it takes a slot only if one is free."""
    queue = Queue(InMemoryBackend(), telemetry=Telemetry(CollectorRegistry()))
    async with queue.slot("sales", max_concurrent=1) if busy else nullcontext():
        enter = Calls.enter
        monkeypatch.setattr(Calls, "enter", lambda self, request: enter(self, request) or True)
        # That the deadline has passed is the subject.
        monkeypatch.setattr(Calls, "delay", lambda self: asyncio.sleep(0.03))
        passage = queue.slot("sales", max_concurrent=1, timeout=0.01)
        if busy:
            with pytest.raises(QueueTimeoutError, match=r"0\.01"):
                await passage.__aenter__()
        else:
            async with passage as slot:
                assert slot.waited == 0
    assert (await queue.stats("sales"))[:2] == (0, 0)


async def test_the_heartbeat_of_many_queues_is_spread_over_iterations_of_the_loop() -> None:
    """The memory backend reports at most 500 queues at once, and none that is idle by then."""
    backend, events = InMemoryBackend(), list[BackendEvent]()
    backend.listen(events.append)
    entered = [await backend.enter(EnterRequest(f"q{n}", "call")) for n in range(1_200)]
    backend._report()
    assert len(events) == 500
    backend.leave(entered[-1].ticket)
    await wait_until(lambda: len(events) == 1_199, "the other queues are reported")
    assert {type(event) for event in events} == {Snapshot}
    await backend.close()
