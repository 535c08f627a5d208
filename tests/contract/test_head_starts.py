"""`head_start`: the place of a call that would have entered earlier."""

from __future__ import annotations

from tests.support.line import DAY, Line
from tests.support.waiting import wait_until


async def test_a_head_start_puts_a_call_where_it_would_have_been(line: Line) -> None:
    """Places are ordered by the time of entering less the head start, then by the time of entering."""
    await line.call("holder")
    await line.call("plain")
    await line.call("early", head_start=3600)
    await line.call("earlier", head_start=7200.0)
    await line.call("early too", head_start=3600)
    await line.call("plain too")
    order = ["earlier", "early", "early too", "plain", "plain too"]
    assert await line.waiting() == order
    positions = [await line.queue.position("sales", item_id) for item_id in order]
    assert positions == [1, 2, 3, 4, 5]
    assert await line.grants() == ["holder", *order]


async def test_a_head_start_overtakes_no_call_that_entered_earlier_still(line: Line) -> None:
    """The place is static: a waiter that entered before it stays in front."""
    await line.call("holder")
    await line.call("waiter")
    await line.call("newcomer", head_start=1e-9)
    assert await line.waiting() == ["waiter", "newcomer"]
    await line.grants()


async def test_a_head_start_takes_no_slot_from_a_waiter_that_is_granted(line: Line) -> None:
    """It changes the place in the line only: a paused queue stays paused."""
    await line.queue.set_limit("sales", 0)
    await line.call("first", head_start=DAY)
    assert (await line.queue.stats("sales"))[:2] == (1, 0)
    await line.queue.set_limit("sales", None)
    assert await line.grants() == ["first"]


async def test_ages_are_true_whatever_the_place(line: Line) -> None:
    """`oldest_wait` is the longest wait, not that of the head; an age contains no head start."""
    await line.call("holder")
    await line.call("old")

    async def oldest_wait() -> float:
        return (await line.queue.stats("sales")).oldest_wait

    async def is_old() -> bool:
        return await oldest_wait() > 0.03

    await wait_until(is_old, "it has waited for 30 ms")
    await line.call("young", head_start=3600)
    entries = {entry.item_id: entry for entry in await line.queue.entries("sales")}
    assert entries["young"].position == 1
    assert entries["young"].age < entries["old"].age <= await oldest_wait() < 60
    await line.grants()
