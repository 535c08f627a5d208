"""`close`, `ping`, and the use of a queue after it was closed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from genesis import Queue
from genesis.exceptions import BackendUnavailableError
from tests.conftest import MakeQueue, state_of
from tests.support.call_group import CallGroup
from tests.support.redis_server import RedisServer
from tests.support.waiting import quiesce, wait_until


async def test_close_ends_waits_and_holds(group: CallGroup) -> None:
    """Waiters get an error that names queue and item; holders see `slot.lost` and leave without one."""
    holder, waiter = await group.line_up("holder", "waiter")
    await group.queue.close()
    with pytest.raises(BackendUnavailableError) as caught:
        await waiter.task
    assert isinstance(caught.value, ConnectionError)
    assert holder.slot is not None
    assert holder.slot.lost
    await holder.gone()
    assert "closed" in str(caught.value)
    assert "'sales'" in str(caught.value)
    assert "'waiter'" in str(caught.value)


async def test_close_in_the_turn_of_a_grant_ends_the_call(group: CallGroup) -> None:
    """If the queue is closed between a grant and its wake-up, the call gets an error or a lost slot."""
    holder, victim = await group.line_up("holder", "victim")
    await group.queue.set_limit("sales", 2)
    await group.queue.close()
    await quiesce()
    if victim.slot is not None:
        assert victim.slot.lost
        await victim.gone()
    else:
        with pytest.raises(BackendUnavailableError):
            await victim.task
    await holder.gone()


@pytest.mark.parametrize("turns", range(4))
async def test_close_while_calls_enter_ends_the_calls(group: CallGroup, turns: int) -> None:
    """Calls that are entering while the queue is closed end with an error or a lost slot."""
    await group.queue.ping()  # connects, so that the turns below are those of the enter
    calls = [group.call(f"call-{number}", limit=2) for number in range(4)]
    await quiesce(turns)
    await group.queue.close()
    await quiesce()
    for call in calls:
        if call.slot is not None:
            assert call.slot.lost
            await call.gone()
        else:
            with pytest.raises(BackendUnavailableError):
                await call.task


OPERATIONS: dict[str, Callable[[Queue], Any]] = {
    "enter": lambda queue: queue.slot("sales", item_id="late").__aenter__(),
    "set_limit": lambda queue: queue.set_limit("sales", 1),
    "stats": lambda queue: queue.stats("sales"),
    "wait_status": lambda queue: queue.position("sales", "late"),
    "entries": lambda queue: queue.entries("sales"),
    "evict": lambda queue: queue.evict("sales", "late"),
    "ping": lambda queue: queue.ping(),
}


@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_use_after_close_raises(queue: Queue, operation: str, used: bool) -> None:
    """Every operation on a closed queue raises an error that names the operation, queue and item."""
    if used:
        await OPERATIONS["stats"](queue)
    await queue.close()
    with pytest.raises(BackendUnavailableError, match="closed") as caught:
        await OPERATIONS[operation](queue)
    assert caught.value.operation == operation
    if operation == "enter":
        assert "'sales'" in str(caught.value)
        assert "'late'" in str(caught.value)


async def test_close_can_be_called_again(queue: Queue) -> None:
    """A second close() does nothing, nor does close() of a queue that was never used."""
    await queue.close()
    await queue.close()
    async with queue:
        pass


async def test_close_does_not_wait_for_calls_that_were_cancelled(
    make_queue: MakeQueue, request: pytest.FixtureRequest, backend_kind: str
) -> None:
    """A call that was cancelled before its enter was sent does not delay close()."""
    queue = make_queue(lease=60.0) if backend_kind == "redis" else make_queue()

    async def call() -> None:
        async with queue.slot("sales", max_concurrent=1):
            pytest.fail("was cancelled before")

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    if backend_kind == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        loads = ("script|load", "script")  # as Redis 7 and as Redis 6 count them
        await wait_until(lambda: sum(map(server.calls, loads)) >= 8, "the connection stands")
        await wait_until(lambda: server.calls("subscribe") >= 1, "both of them")
        await quiesce()
    began = time.monotonic()
    await queue.close()
    assert time.monotonic() - began < 5


async def test_a_queue_is_a_context_manager(make_queue: MakeQueue) -> None:
    """Leaving `async with queue` closes it."""
    async with make_queue() as queue, queue.slot("sales"):
        pass
    with pytest.raises(BackendUnavailableError):
        await queue.ping()


async def test_ping_answers(queue: Queue) -> None:
    """ping() returns if the backend replies, and leaves no state behind."""
    await queue.ping()
    await wait_until(lambda: not state_of(queue), "nothing of the calls is kept")
