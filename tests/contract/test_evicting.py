"""`evict` takes waiters and holders out of a queue."""

from __future__ import annotations

import pytest

from genesis.exceptions import EvictedError, SlotLostError
from tests.support.call_group import CallGroup
from tests.support.waiting import quiesce, wait_until


async def test_an_evicted_waiter_gets_an_error_that_names_queue_and_item(group: CallGroup) -> None:
    """evict() takes a waiter out of the line, and its task gets an error."""
    holder, victim = await group.line_up("holder", "victim")
    assert await group.queue.evict("sales", "victim") == 1
    with pytest.raises(EvictedError, match=r"'sales'.*'victim'"):
        await victim.task
    assert await group.counts() == (0, 1)
    await holder.gone()


async def test_an_evicted_holder_loses_its_slot_which_passes_on_at_once(group: CallGroup) -> None:
    """evict() takes a slot back during the body: `slot.lost` is true, and the head is granted."""
    holder, waiter, last = await group.line_up("holder", "waiter", "last")
    assert holder.slot is not None
    assert not holder.slot.lost
    holder.slot.ensure_held()
    assert await group.queue.evict("sales", "holder") == 1
    await group.until_entered("holder", "waiter")
    slot = holder.slot
    await wait_until(lambda: slot.lost, "the holder knows that it has lost its slot")
    with pytest.raises(SlotLostError, match=r"'sales'.*'holder'"):
        slot.ensure_held()
    # Its own leave gives back nothing: the slot belongs to another call.
    await holder.gone()
    await quiesce()
    assert await group.counts() == (1, 1)
    assert group.entered == ["holder", "waiter"]
    assert slot.lost
    for call in (waiter, last):
        await call.gone()


async def test_a_call_evicted_in_the_turn_of_its_grant_knows_that_it_lost_the_slot(
    group: CallGroup,
) -> None:
    """A call that is evicted between its grant and its wake-up gets an error or a lost slot."""
    async with group.queue.slot("sales", max_concurrent=1):
        victim = group.call("victim")
        heir = group.call("heir")
        await wait_until(lambda: group.queue.position("sales", "heir"), "two wait")
    assert await group.queue.evict("sales", "victim") == 1
    await wait_until(lambda: heir.slot, "the heir holds")
    await quiesce()
    if victim.slot is not None:
        slot = victim.slot
        await wait_until(lambda: slot.lost, "the evicted call knows", timeout=2)
        await victim.gone()
    else:
        with pytest.raises(EvictedError):
            await victim.task
    assert await group.counts() == (0, 1)
    await heir.gone()


async def test_evict_takes_every_ticket_of_an_item(group: CallGroup) -> None:
    """Holders and waiters of one item_id are evicted together; none is granted the slot of another."""
    calls = await group.line_up("twin", "twin", "other", "twin")
    assert await group.queue.evict("sales", "twin") == 3
    await group.until_entered("twin", "other")
    for twin in (calls[1], calls[3]):
        with pytest.raises(EvictedError):
            await twin.task
    await calls[0].gone()
    assert await group.counts() == (0, 1)
    await calls[2].gone()


async def test_evicting_an_unknown_item_returns_zero(group: CallGroup) -> None:
    """evict() of an unknown item returns 0 and evicts no call, in this queue or in another."""
    (holder,) = await group.line_up("holder")
    assert await group.queue.evict("sales", "stranger") == 0
    assert await group.queue.evict("support", "holder") == 0
    assert await group.counts() == (0, 1)
    assert holder.slot is not None
    assert not holder.slot.lost
    await holder.gone()
    assert await group.queue.evict("sales", "holder") == 0
