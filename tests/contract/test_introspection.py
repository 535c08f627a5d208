"""`stats`, `position` and `entries`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from genesis.exceptions import EvictedError
from tests.support.call_group import Call, CallGroup
from tests.support.line import DAY, Line
from tests.support.waiting import wait_until


async def test_stats_count_waiters_and_holders(group: CallGroup) -> None:
    """stats() has the waiting, those in use and the limit, from the first call to the last."""
    assert (await group.queue.stats("sales"))[:4] == (0, 0, 1, 0.0)
    calls = await group.line_up("a", "b", "c", "d", "e", limit=2)
    assert (await group.queue.stats("sales"))[:3] == (3, 2, 2)
    assert (await group.queue.stats("support"))[:4] == (0, 0, 1, 0.0)
    for call in calls:
        await call.gone()
    assert (await group.queue.stats("sales"))[:4] == (0, 0, 1, 0.0)


async def test_the_oldest_wait_is_that_of_the_head(group: CallGroup) -> None:
    """stats().oldest_wait grows while the head waits, and shrinks when a younger one is the head."""
    holder, head = await group.line_up("holder", "head")

    async def head_has_waited() -> bool:
        return (await group.queue.stats("sales")).oldest_wait > 0.05

    await wait_until(head_has_waited, "the head has waited for 50 ms")
    (second,) = await group.line_up("second")
    entries = await group.queue.entries("sales")
    oldest = (await group.queue.stats("sales")).oldest_wait
    assert entries[1].age <= oldest < entries[1].age + 5
    assert entries[2].age < entries[1].age
    await holder.gone()
    await group.until_entered("holder", "head")
    assert (await group.queue.stats("sales")).oldest_wait < oldest + 0.05
    assert (await group.queue.stats("sales")).oldest_wait > 0
    await head.gone()
    assert (await group.queue.stats("sales")).oldest_wait == 0.0
    await second.gone()


async def test_position_counts_from_the_head(group: CallGroup) -> None:
    """position() is 1 for the next call, None for holders and unknown items, and decreases."""
    a, b, c = await group.line_up("a", "b", "c")
    assert [await group.queue.position("sales", name) for name in "abcx"] == [None, 1, 2, None]
    await a.gone()
    assert [await group.queue.position("sales", name) for name in "abcx"] == [None, None, 1, None]
    await b.gone()
    await c.gone()


async def test_of_several_waiters_with_one_id_the_first_in_line_has_the_position(line: Line) -> None:
    """Whatever the order in which they enter and leave."""

    async def positions() -> list[int | None]:
        return [await line.queue.position("sales", name) for name in ("twin", "x")]

    await line.call("holder")
    first = await line.call("twin")
    await line.call("x")
    early = await line.call("twin", head_start=DAY)
    assert await positions() == [1, 3]
    await early.dropped()
    assert await positions() == [1, 2]
    late = await line.call("twin")
    await first.dropped()
    assert await positions() == [2, 1]
    last = await line.call("twin")
    await late.dropped()
    assert await positions() == [2, 1]
    await last.dropped()
    assert await positions() == [None, 1]
    await line.grants()


async def test_the_work_for_the_position_of_an_own_item_does_not_grow_with_the_line(
    group: CallGroup,
) -> None:
    """By the number of lines of Python that run."""
    lines = 0

    def count(*_: object) -> Any:
        nonlocal lines
        lines += 1
        return count

    calls: list[Call] = []
    counts = []
    for size in (10, 300):
        calls += await group.line_up(*(f"call-{number}" for number in range(len(calls), size)))
        trace, lines = sys.gettrace(), 0
        sys.settrace(count)
        try:
            assert await group.queue.position("sales", f"call-{size // 2}") == size // 2
        finally:
            sys.settrace(trace)
        counts.append(lines)
    assert counts[1] < counts[0] + 200
    for call in calls:
        await call.gone()


async def test_two_waiters_may_have_the_same_item_id(group: CallGroup) -> None:
    """They are two waiters: each is counted, listed, granted and cancelled by itself."""
    calls = await group.line_up("twin", "x", "twin", "twin")
    assert await group.counts() == (3, 1)
    assert await group.queue.position("sales", "twin") == 2
    entries = await group.queue.entries("sales")
    assert [entry.item_id for entry in entries] == ["twin", "x", "twin", "twin"]
    calls[2].task.cancel()
    await asyncio.wait({calls[2].task})
    assert await group.counts() == (2, 1)
    assert not calls[3].task.done()
    for call in (calls[0], calls[1], calls[3]):
        await call.gone()
    assert group.entered == ["twin", "x", "twin"]


async def test_entries_list_holders_then_waiters_in_order(group: CallGroup) -> None:
    """entries() has the item, instance, state, age, position and token of each call."""
    calls = await group.line_up("a", "b", "c", "d", limit=2)
    entries = await group.queue.entries("sales")
    assert [(e.item_id, e.state, e.position) for e in entries] == [
        ("a", "holding", None),
        ("b", "holding", None),
        ("c", "waiting", 1),
        ("d", "waiting", 2),
    ]
    assert {entry.instance_id for entry in entries} == {group.queue.instance_id}
    assert all(0 <= entry.age < 30 for entry in entries)
    slots = [call.slot.fencing_token if call.slot else None for call in calls]
    assert [entry.fencing_token for entry in entries] == slots
    for call in calls:
        await call.gone()
    assert await group.queue.entries("sales") == []


async def test_a_very_long_line_is_listed_completely(group: CallGroup) -> None:
    """entries(), position() and evict() see beyond the first thousand waiters."""
    names = [f"call-{number}" for number in range(1003)]
    calls = await group.line_up(*names)
    assert [entry.item_id for entry in await group.queue.entries("sales")] == names
    assert await group.queue.position("sales", "call-1002") == 1002
    assert await group.queue.evict("sales", "call-1002") == 1
    with pytest.raises(EvictedError):
        await calls.pop().task
    for call in calls:
        call.go()
    await asyncio.gather(*(call.task for call in calls))
    assert group.entered == names[:-1]
