"""`timeout`: the deadline of a wait."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from genesis import Queue, QueueTimeoutError
from genesis.backends.protocol import Ticket
from genesis.exceptions import GenesisError
from tests.support.call_group import CallGroup, Waits
from tests.support.waiting import wait_until


async def test_a_timeout_is_a_timeout_error_that_names_queue_and_item(group: CallGroup) -> None:
    """A call that is not granted in time leaves the line with an error that names queue and item."""
    (holder,) = await group.line_up("holder")
    with pytest.raises(TimeoutError) as caught:
        async with group.queue.slot("sales", item_id="late", max_concurrent=1, timeout=0.2):
            pytest.fail("granted a slot that is taken")
    assert isinstance(caught.value, QueueTimeoutError)
    assert isinstance(caught.value, GenesisError)
    assert "'sales'" in str(caught.value)
    assert "'late'" in str(caught.value)
    assert (caught.value.queue_id, caught.value.item_id, caught.value.timeout) == (
        "sales",
        "late",
        0.2,
    )
    assert await group.counts() == (0, 1)
    await holder.gone()


async def test_a_wait_with_an_endless_timeout_is_granted(group: CallGroup) -> None:
    """timeout=inf waits as None does."""
    (holder,) = await group.line_up("holder")
    waiter = group.call("waiter", timeout=float("inf"))
    await wait_until(lambda: group.queue.position("sales", "waiter"), "it waits")
    await holder.gone()
    await group.until_entered("holder", "waiter")
    await waiter.gone()


async def test_timeout_zero_takes_a_free_slot(queue: Queue) -> None:
    """timeout=0 is granted if a slot is free now, with no wait."""
    async with queue.slot("sales", max_concurrent=1, timeout=0) as slot:
        assert slot.waited == 0.0
        assert (await queue.stats("sales"))[:2] == (0, 1)


async def test_timeout_zero_is_refused_without_being_enqueued(group: CallGroup, waits: Waits) -> None:
    """timeout=0 on a full queue raises at once, and the call never enters the line."""
    (holder,) = await group.line_up("holder")
    with pytest.raises(QueueTimeoutError, match="timeout=0"):
        async with group.queue.slot("sales", item_id="now", timeout=0):
            pytest.fail("granted a slot that is taken")
    assert not waits.futures
    assert [entry.item_id for entry in await group.queue.entries("sales")] == ["holder"]
    await holder.gone()


async def test_waited_is_zero_for_a_free_slot_and_more_after_a_wait(
    group: CallGroup, layer: str
) -> None:
    """slot.waited is the time that the call was in the line."""
    holder, waiter = await group.line_up("holder", "waiter")
    assert holder.slot is not None
    assert holder.slot.waited == 0.0
    await holder.gone()
    await group.until_entered("holder", "waiter")
    assert waiter.slot is not None
    if layer == "observed":  # the layer owns the clock
        assert waiter.slot.waited > 0.0
    await waiter.gone()


async def test_the_time_that_entering_takes_counts_for_the_timeout(
    queue: Queue, monkeypatch: Any
) -> None:
    """The wait gets the part of the timeout that entering has left."""
    backend = queue._backend
    enter = backend.enter
    left: list[float] = []
    passed: list[float | None] = []

    async def slow_enter(request: Any) -> Any:
        passed.append(request.timeout)
        result = await enter(request)
        await asyncio.sleep(0.05)  # that entering takes so long is the subject
        return result

    wait = backend.wait

    async def recording_wait(ticket: Ticket, timeout: float | None) -> Any:
        assert timeout is not None
        left.append(timeout)
        return await wait(ticket, timeout)

    async with queue.slot("sales"):
        monkeypatch.setattr(backend, "enter", slow_enter, raising=False)
        monkeypatch.setattr(backend, "wait", recording_wait, raising=False)
        with pytest.raises(QueueTimeoutError, match=r"0\.2 s"):
            async with queue.slot("sales", timeout=0.2):
                pytest.fail("entered")
        with pytest.raises(QueueTimeoutError):
            async with queue.slot("sales", timeout=0):
                pytest.fail("entered")
    assert passed == [0.2, 0.0]
    assert 0 < left[0] <= 0.16
