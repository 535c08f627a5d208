"""Fencing tokens grow with every grant."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from genesis import Queue
from tests.support.call_group import CallGroup
from tests.support.waiting import wait_until


async def test_fencing_tokens_grow_with_every_grant(queue: Queue) -> None:
    """Each grant has a larger token than the one before, with or without a wait."""
    tokens: list[int] = []

    async def call() -> None:
        async with queue.slot("sales", max_concurrent=2) as slot:
            tokens.append(slot.fencing_token)
            await asyncio.sleep(0)

    await asyncio.gather(*(call() for _ in range(30)))
    assert len(tokens) == 30
    assert all(type(token) is int for token in tokens)
    assert all(earlier < later for earlier, later in pairwise(tokens))


async def test_fencing_tokens_grow_across_idle_times(queue: Queue) -> None:
    """A queue that has been empty continues with larger tokens."""
    tokens = []
    for _ in range(20):
        async with queue.slot("sales", max_concurrent=1) as slot:
            tokens.append(slot.fencing_token)
        assert (await queue.stats("sales"))[:2] == (0, 0)
    assert all(earlier < later for earlier, later in pairwise(tokens))


async def test_a_waiter_has_the_token_of_its_grant(group: CallGroup) -> None:
    """Tokens are in the order of the grants; entries() and the slot have the same token."""
    holder, waiter = await group.line_up("holder", "waiter")
    await holder.gone()
    await wait_until(lambda: waiter.slot, "the waiter holds")
    assert holder.slot is not None
    assert waiter.slot is not None
    assert waiter.slot.fencing_token > holder.slot.fencing_token
    (entry,) = await group.queue.entries("sales")
    assert entry.fencing_token == waiter.slot.fencing_token
    await waiter.gone()
