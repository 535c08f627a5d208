"""Promise 2: slots are granted first in, first out."""

from __future__ import annotations

import asyncio
import random

import pytest

from genesis import Queue, QueueTimeoutError
from genesis.exceptions import EvictedError
from tests.support.call_group import Call, CallGroup, Waits
from tests.support.waiting import quiesce, wait_until


async def test_grants_are_given_in_the_order_of_entering(queue: Queue) -> None:
    """Waiters get their slots first in, first out, two at a time.

    The order is that of the fencing tokens, which are given with the grants. The bodies might begin in
    another order: if two calls are granted in one turn of the loop, one that already waits wakes up in
    the next turn, while the other first gets the reply to its enter and has not begun to wait.
    """
    granted: list[tuple[int, int]] = []

    async def call(number: int) -> None:
        async with queue.slot("sales", item_id=f"call-{number}", max_concurrent=2) as slot:
            granted.append((slot.fencing_token, number))
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(call(number)) for number in range(20)]
    await asyncio.gather(*tasks)
    assert [number for _, number in sorted(granted)] == list(range(20))


async def test_mixed_arrivals_keep_their_order(group: CallGroup) -> None:
    """No call overtakes another in a random mixture of arrivals, releases, pauses and cancellations."""
    rng = random.Random(7)
    calls: list[Call] = []
    gone: set[str] = set()
    while len(calls) < 80:
        step = rng.random()
        if step < 0.5:
            calls.append(group.call(f"call-{len(calls)}", limit=3))
        elif step < 0.7:
            for call in calls:
                if call.slot is not None and not call.task.done():
                    call.go()
                    break
        elif step < 0.8 and calls:
            victim = rng.choice(calls)
            if victim.slot is None and not victim.task.done():
                victim.task.cancel()
                gone.add(victim.item_id)
        else:
            await quiesce(rng.randrange(5))
    for call in calls:
        call.go()
    await asyncio.gather(*(call.task for call in calls), return_exceptions=True)
    expected = [call.item_id for call in calls if call.slot is not None]
    assert group.entered == expected
    assert len(group.entered) + len(gone) == 80
    assert group.most <= 3


async def test_a_newcomer_does_not_overtake_into_a_slot_freed_in_the_same_turn(
    group: CallGroup,
) -> None:
    """A call that enters in the iteration in which a slot becomes free is behind the waiters."""
    first, waiter = await group.line_up("first", "waiter")
    first.go()
    newcomer = group.call("newcomer")
    await group.until_entered("first", "waiter")
    await wait_until(lambda: group.queue.position("sales", "newcomer"), "the newcomer waits")
    await waiter.gone()
    await newcomer.gone()
    assert group.entered == ["first", "waiter", "newcomer"]


async def test_a_task_that_releases_and_enters_again_is_behind_the_waiters(group: CallGroup) -> None:
    """A task that leaves and enters again at once does not get its own slot back."""
    async with group.queue.slot("sales", max_concurrent=1):
        (waiter,) = [group.call("waiter")]
        await wait_until(lambda: group.queue.position("sales", "waiter"), "the waiter waits")
    with pytest.raises(QueueTimeoutError):
        async with group.queue.slot("sales", max_concurrent=1, timeout=0):
            pytest.fail("overtook a waiter")
    waiter.go()
    async with group.queue.slot("sales", item_id="again", max_concurrent=1):
        group.entered.append("again")
    assert group.entered == ["waiter", "again"]
    await waiter.gone()


async def test_slots_freed_in_one_turn_go_to_the_heads_in_order(group: CallGroup) -> None:
    """Three slots that become free together are granted to the first three waiters, in order."""
    calls = await group.line_up("a", "b", "c", "d", "e", "f", "g", "h", limit=3)
    for call in (calls[1], calls[2], calls[0]):
        call.go()
    await group.until_entered("a", "b", "c", "d", "e", "f")
    assert await group.counts() == (2, 3)
    for call in calls:
        call.go()
    await asyncio.gather(*(call.task for call in calls))
    assert group.entered == ["a", "b", "c", "d", "e", "f", "g", "h"]


@pytest.mark.parametrize("ending", ["timeout", "cancel", "evict"])
@pytest.mark.parametrize("victim", [1, 2, 4])
async def test_a_waiter_that_ends_early_keeps_the_others_in_order(
    group: CallGroup, waits: Waits, ending: str, victim: int
) -> None:
    """A timeout, cancellation or eviction anywhere in the line does not reorder the other waiters."""
    names = ["holder", "w1", "w2", "w3", "w4"]
    calls = await group.line_up("holder")
    calls += [group.call(name, timeout=3600) for name in names[1:]]
    await wait_until(lambda: group.queue.position("sales", "w4"), "four wait")
    await wait_until(lambda: len(waits.futures) == 4, "four have begun to wait")
    if ending == "timeout":
        waits.futures[victim - 1].set_exception(TimeoutError())  # what the timer does
    elif ending == "cancel":
        calls[victim].task.cancel()
    else:
        assert await group.queue.evict("sales", names[victim]) == 1
    errors = {"timeout": QueueTimeoutError, "cancel": asyncio.CancelledError, "evict": EvictedError}
    with pytest.raises(errors[ending]):
        await calls[victim].task
    del calls[victim], names[victim]
    places = [await group.queue.position("sales", name) for name in names]
    assert places == [None, 1, 2, 3]
    for call in calls:
        await call.gone()
    assert group.entered == names


async def test_queues_do_not_wait_for_each_other(queue: Queue) -> None:
    """A full queue does not delay a call of another queue."""
    async with (
        queue.slot("sales", max_concurrent=1),
        queue.slot("support", max_concurrent=1, timeout=0),
    ):
        assert (await queue.stats("sales"))[:2] == (0, 1)
        assert (await queue.stats("support"))[:2] == (0, 1)
