"""Redis is down or does not reply: deadlines hold, and every call ends with its reason."""

from __future__ import annotations

import asyncio
import copy
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from genesis.backends.redis import driver
from genesis.exceptions import BackendUnavailableError, QueueTimeoutError
from tests.conftest import LEASE
from tests.support.fleet import AT_ONCE, IN_TIME, Fleet, seconds, works_again
from tests.support.redis_server import RedisServer
from tests.support.waiting import quiesce, turns, wait_until


@contextmanager
def paused(server: RedisServer) -> Iterator[None]:
    """Redis keeps its connections, but does not reply."""
    server.pause()
    try:
        yield
    finally:
        server.resume()


# Deadlines


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "first use"])
@pytest.mark.parametrize(("timeout", "least", "most"), [(0.5, 0.45, 1.5), (0, 0.0, 2.0)])
async def test_a_timeout_is_a_deadline_while_redis_does_not_answer(
    fleet: Fleet, timeout: float, least: float, most: float, connected: bool
) -> None:
    """Redis is stopped: the error comes after the timeout, or after at most 1 s if that is 0."""
    queue = fleet.queue(lease=30.0)
    if connected:
        await queue.ping()
    with paused(fleet.server):
        took, error = await seconds(fleet.call(queue, "call", timeout=timeout).task)
    assert isinstance(error, BackendUnavailableError)
    assert least < took < most
    await fleet.settled()


async def test_a_timeout_is_a_deadline_while_a_waiter_waits(fleet: Fleet) -> None:
    """In the line already when Redis stops answering: QueueTimeoutError, in time."""
    queue = fleet.queue(lease=30.0)
    holder = fleet.call(queue, "holder")
    await holder.held()
    waiter = fleet.call(queue, "waiter", timeout=0.6)
    await fleet.waits(queue, "waiter")
    with paused(fleet.server):
        took, error = await seconds(waiter.task)
    assert isinstance(error, QueueTimeoutError)
    assert took < 5.0  # a third of the lease is 10 s
    await holder.leave()
    await fleet.settled()


async def test_the_operation_timeout_bounds_a_call_that_names_none(fleet: Fleet) -> None:
    """Also those that enter together, of which the first to enter fails first."""
    queue = fleet.queue(lease=30.0, operation_timeout=0.5)
    await queue.ping()
    with paused(fleet.server):
        calls = [fleet.call(queue, f"call-{n}") for n in range(3)]
        for call in calls:
            took, error = await seconds(call.task)
            assert isinstance(error, BackendUnavailableError)
            assert took < 5.0
    await fleet.settled()


async def test_leaving_waits_for_nothing_while_redis_does_not_answer(fleet: Fleet) -> None:
    """And neither does giving up; the slot is free as soon as Redis answers again."""
    queue, other = fleet.queue(lease=30.0), fleet.queue(lease=30.0)
    holder = fleet.call(queue, "holder")
    await holder.held()
    (waiter,) = await fleet.waiting(queue, "waiter")
    with paused(fleet.server):
        took, _ = await seconds(holder.leave())
        assert took < AT_ONCE
        waiter.task.cancel()
        took, _ = await seconds(waiter.task)
        assert took < AT_ONCE
    await fleet.call(other, "next").held(5.0)  # a heartbeat comes every 10 s


async def test_closing_waits_a_second_at_most_while_redis_does_not_answer(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot know whether Redis is away; a holder's slot comes free when Redis answers again."""
    monkeypatch.setattr(driver, "CLOSE_WITHIN", 2.0)  # for a bound that stands a busy machine
    queue, other = fleet.queue(lease=30.0), fleet.queue(lease=30.0)
    holder = fleet.call(queue, "holder")
    await holder.held()
    with paused(fleet.server):
        took, _ = await seconds(queue.close())
        assert took < 3.5  # twice as long, if each of two steps waited that long
        assert holder.lost
    await holder.ended()
    await other.ping()


async def test_closing_does_not_wait_for_a_redis_that_is_known_to_be_away(fleet: Fleet) -> None:
    """Not even for one second."""
    queue = fleet.queue()
    holder = fleet.call(queue, "holder")
    await holder.held()
    fleet.server.kill()
    await wait_until(fleet.disruptions, "the connection is lost")
    took, _ = await seconds(queue.close())
    assert took < AT_ONCE
    assert holder.lost
    await holder.ended()
    fleet.server.start()


async def test_draining_is_cut_off_by_its_timeout_while_redis_does_not_answer(fleet: Fleet) -> None:
    """drain waits for the replies, so a Redis that gives none is what its timeout is for."""
    queue = fleet.queue(lease=30.0)
    holder = fleet.call(queue, "holder")
    await holder.held()
    with paused(fleet.server):
        await holder.leave()
        took, _ = await seconds(queue.drain(timeout=0.3))
        assert 0.2 < took < 5.0


@pytest.mark.parametrize("operation", ["set_limit", "evict", "stats", "entries", "position", "ping"])
async def test_every_operation_fails_in_time_while_redis_does_not_answer(
    fleet: Fleet, operation: str
) -> None:
    """Within operation_timeout, which may be spent on a connection that was given up."""
    queue = fleet.queue(operation_timeout=0.6)
    await queue.ping()
    calls = {
        "set_limit": lambda: queue.set_limit("sales", 2),
        "evict": lambda: queue.evict("sales", "item"),
        "stats": lambda: queue.stats("sales"),
        "entries": lambda: queue.entries("sales"),
        "position": lambda: queue.position("sales", "item"),
        "ping": queue.ping,
    }
    with paused(fleet.server):
        took, error = await seconds(calls[operation]())
    assert isinstance(error, BackendUnavailableError)
    assert took < 1.1  # not twice the timeout


# No server


async def test_without_a_server_a_call_fails_in_bounded_time_and_works_once_it_is_there(
    fleet: Fleet,
) -> None:
    """BackendUnavailableError after operation_timeout, whose message names queue, item and cause."""
    fleet.server.kill()
    queue = fleet.queue(lease=30.0, operation_timeout=0.5)
    took, error = await seconds(fleet.call(queue, "call-1").task)
    assert isinstance(error, BackendUnavailableError)
    for word in ("sales", "call-1", "out of reach"):
        assert word in str(error)
    assert 0.4 < took < 5.0
    fleet.server.start()
    assert await works_again(fleet, queue) < 3
    await fleet.settled()


async def test_the_errors_of_a_real_outage_survive_pickle_and_copy(fleet: Fleet) -> None:
    """With message and attributes: a ProcessPoolExecutor hands them to its caller."""
    queue = fleet.queue(operation_timeout=0.2)
    fleet.server.kill()
    error = await fleet.call(queue, "call").failure()
    fleet.server.start()
    assert isinstance(error, BackendUnavailableError)
    for duplicate in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(duplicate) is type(error)
        assert str(duplicate) == str(error)
        assert vars(duplicate) == vars(error)


@pytest.mark.parametrize("url", ["redis://:wrong@{}", "redis://no-such-host.invalid:6379"])
async def test_a_wrong_password_or_an_unknown_host_is_an_error_at_once(fleet: Fleet, url: str) -> None:
    """A retry does not help, so no call waits, and neither do later calls."""
    fleet.server.client.config_set("requirepass", "right")
    fleet.server.client.auth("right")
    queue = fleet.queue(url.format(f"127.0.0.1:{fleet.server.port}"), lease=15.0)
    for item in ("first", "second"):
        took, error = await seconds(fleet.call(queue, item).task)
        assert isinstance(error, BackendUnavailableError)
        assert took < 2.0
    took, error = await seconds(queue.stats("sales"))
    assert isinstance(error, BackendUnavailableError)
    assert took < 2.0
    fleet.server.client.config_set("requirepass", "")


async def test_a_password_that_is_put_right_is_found_out(fleet: Fleet) -> None:
    """A denied connection is still retried."""
    fleet.server.client.config_set("requirepass", "right")
    fleet.server.client.auth("right")
    queue = fleet.queue(f"redis://:other@127.0.0.1:{fleet.server.port}")
    assert isinstance(await fleet.call(queue, "call").failure(), BackendUnavailableError)
    fleet.server.client.config_set("requirepass", "other")
    fleet.server.client.auth("other")
    assert await works_again(fleet, queue) < 3
    fleet.server.client.config_set("requirepass", "")


async def test_a_caller_that_retries_at_once_does_not_freeze_the_loop(fleet: Fleet) -> None:
    """While the connection is denied, every operation fails at once, but lets other tasks run."""
    queue = fleet.queue("redis://no-such-host.invalid:6379")
    await fleet.call(queue, "first").failure()

    async def enter() -> None:
        with pytest.raises(BackendUnavailableError):
            await queue.slot("sales").__aenter__()

    async def ask() -> None:
        with pytest.raises(BackendUnavailableError):
            await queue.stats("sales")

    assert await turns(enter) >= 9
    assert await turns(ask) >= 9


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_an_outage_longer_than_the_lease_ends_every_call_knowingly(
    fleet: Fleet, how: str
) -> None:
    """Holders' slot.lost turns true, waiters get the error, and nothing is stuck afterwards."""
    queue = fleet.queue()
    holder = fleet.call(queue, "holder")
    await holder.held()
    (waiter,) = await fleet.waiting(queue, "waiter")
    began = time.monotonic()
    if how == "killed":
        fleet.server.kill()
    else:
        fleet.server.pause()
    try:
        await wait_until(lambda: holder.lost, "the holder knows")
        error = await waiter.failure()
        took = time.monotonic() - began
        newcomer = await fleet.call(queue, "newcomer").failure()
    finally:
        if how == "killed":
            fleet.server.start()
        else:
            fleet.server.resume()
    assert isinstance(error, BackendUnavailableError)
    assert "longer than the lease" in str(error)
    assert isinstance(newcomer, BackendUnavailableError)
    assert took < LEASE + 1.0
    await holder.leave()
    await fleet.settled()


async def test_a_leave_while_redis_is_away_takes_effect_when_it_is_back(fleet: Fleet) -> None:
    """The data survives the outage (a pause), and the slot is free long before the lease lapses."""
    queue, other = fleet.queue(lease=30.0, operation_timeout=0.4), fleet.queue(lease=30.0)
    holder = fleet.call(queue, "holder")
    await holder.held()
    with paused(fleet.server):
        await holder.leave()
        await wait_until(fleet.disruptions, "the connection is given up")
    await fleet.call(other, "next").held(10.0)


# Closing


async def test_a_close_while_the_connection_is_broken_waits_for_nothing(fleet: Fleet) -> None:
    """Redis is known to be away; the lease gives back what is left."""
    proxy = await fleet.proxy()
    queue, other = fleet.queue(proxy.url), fleet.queue()
    holder = fleet.call(queue, "holder")
    await holder.held()
    (waiter,) = await fleet.waiting(other, "waiter")
    proxy.refusing = True
    proxy.cut()
    await wait_until(fleet.disruptions, "the connection is broken")
    took, _ = await seconds(queue.close())
    assert took < AT_ONCE
    assert holder.lost
    await waiter.held(timeout=IN_TIME)
    await waiter.leave()
    await holder.ended()
    await fleet.settled()


@pytest.mark.parametrize("turns", range(0, 40, 3))
async def test_closing_while_a_connection_is_made_ends(fleet: Fleet, turns: int) -> None:
    """close() after so many turns of the loop: it ends soon, and leaves no task and no connection."""
    before = asyncio.all_tasks()
    queue = fleet.queue()
    ping = asyncio.create_task(queue.ping())
    await quiesce(turns)
    took, error = await seconds(queue.close())
    assert error is None
    assert took < 5.0
    await asyncio.gather(ping, return_exceptions=True)
    await wait_until(lambda: asyncio.all_tasks() <= before, "no task is left")
    await wait_until(lambda: fleet.server.connections() == 0, "no connection is left")


async def test_a_close_that_is_cancelled_still_closes(fleet: Fleet) -> None:
    """Cut off half way, with Redis standing still, close goes on; a second one waits for its end."""
    queue = fleet.queue()
    before = asyncio.all_tasks()
    async with queue.slot("line"):
        with paused(fleet.server), pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(queue.close(), 0.05)
        await queue.close()
    await wait_until(lambda: asyncio.all_tasks() == before, "no task is left")
    await wait_until(lambda: fleet.server.connections() == 0, "no connection is left")


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_a_close_whose_task_is_cancelled_leaves_no_connection(fleet: Fleet, turns: int) -> None:
    """All tasks are cancelled at once, perhaps before the one that closes has begun."""
    queue = fleet.queue()
    await queue.ping()
    closing = asyncio.create_task(queue.close())
    await quiesce(turns)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    await queue.close()
    await wait_until(lambda: fleet.server.connections() == 0, "no connection is left")


async def test_closing_gives_back_what_waits_and_what_holds(fleet: Fleet) -> None:
    """Well before the lease: others are granted, waiters here get an error that says why."""
    queue, other = fleet.queue(lease=60.0), fleet.queue(lease=60.0)
    holder = fleet.call(queue, "holder")
    await holder.held()
    (mine,) = await fleet.waiting(queue, "mine")
    (theirs,) = await fleet.waiting(other, "theirs")
    await queue.close()
    await theirs.held(10.0)  # a heartbeat comes every 20 s
    assert holder.lost
    error = await mine.failure()
    assert isinstance(error, BackendUnavailableError)
    assert "closed" in str(error)
    await holder.ended()
    await theirs.leave()
