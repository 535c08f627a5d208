"""Any string is a valid id."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from genesis import Queue
from genesis.exceptions import EvictedError
from tests.support.call_group import CallGroup
from tests.support.ids import UNUSUAL_IDS


@pytest.mark.parametrize("name", UNUSUAL_IDS, ids=lambda name: ascii(name)[:20])
async def test_any_id_works_from_end_to_end(queue: Queue, name: str) -> None:
    """Calls with any id are entered, granted, listed, found and evicted."""
    group = CallGroup(queue, name)
    holder, waiter, victim = await group.line_up(name, name, name + "!")
    entries = await queue.entries(name)
    assert [entry.item_id for entry in entries] == [name, name, name + "!"]
    assert await queue.position(name, name) == 1
    assert await queue.position(name, name + "!") == 2
    assert await queue.evict(name, name + "!") == 1
    with pytest.raises(EvictedError) as caught:
        await victim.task
    assert repr(name) in str(caught.value)
    await holder.gone()
    await group.until_entered(name, name)
    assert waiter.slot is not None
    assert (waiter.slot.queue_id, waiter.slot.item_id) == (name, name)
    await queue.set_limit(name, 2)
    (second,) = await group.line_up(name)
    assert (await queue.stats(name))[:3] == (0, 2, 2)
    await queue.set_limit(name, None)
    assert await queue.evict(name, name) == 2
    await waiter.gone()
    await second.gone()


async def test_unusual_queue_ids_do_not_collide(queue: Queue) -> None:
    """Two ids are two queues, even if they are alike after escaping."""
    async with AsyncExitStack() as stack:
        for name in UNUSUAL_IDS:
            await stack.enter_async_context(queue.slot(name, max_concurrent=1, timeout=0))
        for name in UNUSUAL_IDS:
            assert (await queue.stats(name))[:2] == (0, 1)
