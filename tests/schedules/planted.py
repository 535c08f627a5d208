"""Planted bugs, to show that the explorer finds them.

Each is plausible: a hand-off that checks the state of the waiter's task, a `leave` that is skipped as
unnecessary. Each shows only in a run with the race that it needs.
"""

from __future__ import annotations

import asyncio

import pytest

from genesis.backends.memory import InMemoryBackend
from genesis.backends.protocol import Grant, LeaveResult, Ticket

__all__ = ["MEMORY"]

Patch = pytest.MonkeyPatch


def _leak_on(patch: Patch, reason: type[BaseException]) -> None:
    wait, leave = InMemoryBackend.wait, InMemoryBackend.leave
    leaked: set[str] = set()

    async def forgetful_wait(self: InMemoryBackend, ticket: Ticket, timeout: float | None) -> Grant:
        try:
            return await wait(self, ticket, timeout)
        except reason:
            leaked.add(ticket.id)
            raise

    def forgetful_leave(
        self: InMemoryBackend, ticket: Ticket, context: str = "", keep_place: float = 0.0
    ) -> LeaveResult:
        line = self._lines.get(ticket.queue_id)
        if line is not None and ticket.id in leaked and ticket.id in line.holding:
            return LeaveResult(None)
        return leave(self, ticket, context, keep_place)

    patch.setattr(InMemoryBackend, "wait", forgetful_wait)
    patch.setattr(InMemoryBackend, "leave", forgetful_leave)


def keep_the_slot_of_a_cancelled_waiter(patch: Patch) -> None:
    """A slot granted to a waiter that is being cancelled is not passed on."""
    _leak_on(patch, asyncio.CancelledError)


def keep_the_slot_of_a_waiter_out_of_time(patch: Patch) -> None:
    """A slot granted to a waiter whose timer has just fired is not passed on."""
    _leak_on(patch, TimeoutError)


def let_a_raised_limit_wait(patch: Patch) -> None:
    """A raised limit takes effect only with the next `leave`."""
    set_limit = InMemoryBackend.set_limit

    async def lazy_set_limit(self: InMemoryBackend, queue_id: str, limit: int | None) -> None:
        line = self._lines.get(queue_id)
        if line is None or not line.waiting:
            await set_limit(self, queue_id, limit)
            return
        waiting, line.waiting = line.waiting, {}
        await set_limit(self, queue_id, limit)
        line.waiting = waiting

    patch.setattr(InMemoryBackend, "set_limit", lazy_set_limit)


def grant_a_slot_too_many_on_eviction(patch: Patch) -> None:
    """An eviction grants a slot to the head, even if the evicted call had none."""
    evict = InMemoryBackend.evict

    async def generous_evict(self: InMemoryBackend, queue_id: str, item_id: str) -> int:
        count = await evict(self, queue_id, item_id)
        line = self._lines.get(queue_id)
        if count and line is not None and line.waiting:
            passage = line.order.popleft()
            line.holding[passage.ticket.id] = line.waiting.pop(passage.ticket.id)
            passage.token = next(self._numbers)
            if not passage.future.done():
                passage.future.set_result(Grant(passage.token))
        return count

    patch.setattr(InMemoryBackend, "evict", generous_evict)


MEMORY = (
    keep_the_slot_of_a_cancelled_waiter,
    keep_the_slot_of_a_waiter_out_of_time,
    let_a_raised_limit_wait,
    grant_a_slot_too_many_on_eviction,
)
