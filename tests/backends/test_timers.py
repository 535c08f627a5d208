"""The timer of a backend's queues: each is looked at when it is due, and forgotten when it is idle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import genesis
from genesis.backends.protocol import BackendEvent, EnterRequest, SlotLost, Snapshot
from genesis.backends.redis.index import KEEP
from genesis.exceptions import BackendUnavailableError
from genesis.queue import RedisBackend
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


async def test_a_queue_that_was_only_looked_at_is_forgotten(redis_server: RedisServer) -> None:
    """Otherwise a process that looks at many queues keeps something of each, for ever."""
    async with RedisBackend(redis_server.url, lease=0.6) as backend:
        backend.listen(lambda event: None)
        await backend.stats("a")
        await backend.entries("b")
        driver = backend._driver
        assert driver is not None
        await wait_until(lambda: not driver.queues, "nothing is kept of the two queues")


async def test_a_heartbeat_does_not_wait_for_the_timer_of_another_queue(
    redis_server: RedisServer,
) -> None:
    """A tick of one queue, which is due again late, leaves the timer of the next one as it is."""
    lease = 3.0
    beaten: list[float] = []

    def on_event(event: BackendEvent) -> None:
        if isinstance(event, Snapshot) and event.queue_id == "second":
            beaten.append(time.monotonic())

    async with RedisBackend(redis_server.url, lease=lease) as backend:
        backend.listen(on_event)
        first = await backend.enter(EnterRequest("first", "a"))
        backend.leave(first.ticket)
        await asyncio.sleep(lease / 6)  # that the two are due at different times is the subject
        second = await backend.enter(EnterRequest("second", "b"))
        entered = time.monotonic()
        await wait_until(lambda: bool(beaten), "the second queue had its heartbeat")
        assert beaten[0] - entered < lease / 2
        backend.leave(second.ticket)


async def test_an_exception_in_a_tick_stops_no_timer(own_redis: RedisServer) -> None:
    """A listener raises when a slot is lost; the heartbeats of the other queue continue."""
    lost: list[str] = []
    beats: list[str] = []
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, error: reported.append(error))

    def on_event(event: BackendEvent) -> None:
        if isinstance(event, Snapshot):
            beats.append(event.queue_id)
        if isinstance(event, SlotLost):
            lost.append(event.ticket.queue_id)
            raise LookupError("planted")

    async with RedisBackend(own_redis.url, lease=0.9) as backend:
        backend.listen(on_event)
        first = await backend.enter(EnterRequest("first", "a"))
        second = await backend.enter(EnterRequest("second", "b"))
        key = "genesis:queue:{first}:leases"
        own_redis.client.delete(key)
        own_redis.client.set(key, "the wrong type")  # no heartbeat of the first queue succeeds
        await wait_until(lambda: bool(reported), "the listener has raised")
        before = beats.count("second")
        await wait_until(lambda: beats.count("second") >= before + 3, "the heartbeats continue")
        assert lost == ["first"]
        for result in (first, second):
            backend.leave(result.ticket)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a loop that ended has left its connection open
def test_a_call_in_a_second_loop_is_failed_in_time(own_redis: RedisServer) -> None:
    """The first loop ended before its timer fired; that is not taken for a timer of the second."""
    backend = RedisBackend(own_redis.url, operation_timeout=0.3)
    backend.listen(lambda event: None)

    async def call() -> None:
        result = await backend.enter(EnterRequest("sales", "a"))
        backend.leave(result.ticket)
        await backend.flush()

    asyncio.run(call())
    own_redis.pause()
    try:
        with pytest.raises(BackendUnavailableError):
            asyncio.run(asyncio.wait_for(call(), 5))
    finally:
        own_redis.resume()


async def test_a_queue_can_be_opened_while_the_index_is_about_to_be_written(
    redis_server: RedisServer,
) -> None:
    """For a delay that rounds to zero, uvloop returns a handle without `when()`."""
    async with RedisBackend(redis_server.url) as backend:
        await backend.ping()
        driver = backend._driver
        assert driver is not None
        driver.index.write_in(0.0)
        await backend.stats("opened meanwhile")


async def test_the_index_lists_an_instance_with_a_long_lease_again_in_time(
    redis_server: RedisServer,
) -> None:
    """Otherwise `genesis limit` does not know the lease, and shortens the queue's expiry."""
    async with RedisBackend(redis_server.url, lease=7_200.0) as backend:
        await backend.stats("a")
        driver: Any = backend._driver
        listed: Any = redis_server.client
        await wait_until(lambda: listed.zcard("genesis:queue:index:queues") == 1, "the queue is listed")
        assert driver.index.due - driver.loop.time() <= KEEP / 3


async def test_an_outage_costs_nothing_for_each_queue(own_redis: RedisServer) -> None:
    """Otherwise 20,000 queues would keep the loop busy: with their timers, and with their index."""
    async with RedisBackend(own_redis.url, lease=0.9) as backend:
        lost: list[BackendEvent] = []
        backend.listen(lambda event: lost.append(event) if isinstance(event, SlotLost) else None)
        tickets = [(await backend.enter(EnterRequest(queue_id, "a"))).ticket for queue_id in "abc"]
        driver: Any = backend._driver
        done: list[str] = []

        def counted(name: str, method: Callable[..., None]) -> Callable[..., None]:
            def call(*arguments: Any) -> None:
                done.append(name)
                method(*arguments)

            return call

        driver.index.write = counted("write due", driver.index.write)
        driver.index._add = counted("add", driver.index._add)
        driver._tick_queue = counted("tick", driver._tick_queue)
        own_redis.kill()
        await wait_until(lambda: len(lost) == 3, "all leases have lapsed")
        done.clear()
        await wait_until(lambda: done.count("write due") == 3, "three writes of the index were due")
        assert done.count("add") == 0
        assert done.count("tick") <= 3  # one for each queue and lease
        own_redis.start()
        client: Any = own_redis.client
        await wait_until(lambda: client.zcard("genesis:queue:index:queues") == 3, "all are listed")
        for ticket in tickets:
            backend.leave(ticket)


def test_no_timer_is_asked_when_it_fires() -> None:
    """uvloop's handle of a timer without delay has no `when`, which asyncio does not show."""
    for file in Path(genesis.__file__).parent.rglob("*.py"):
        assert ".when()" not in file.read_text(), file
