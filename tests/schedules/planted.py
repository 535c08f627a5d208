"""Bugs, planted by a test for a moment, to show that the explorer finds such.

Each is one that a careful person could write: a hand-off that looks at the task it is for, a leave
that is taken to be needless. None of them shows in a run without the race that it needs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import pytest
from genesis.backends.redis.heartbeat import Heart
from genesis.backends.redis.ledger import Ledger, Stage

from genesis.backends.memory import InMemoryBackend
from genesis.backends.protocol import Grant, LeaveResult, Ticket
from genesis.backends.redis.backend import RedisBackend
from genesis.backends.redis.link import Command, Link

__all__ = ["MEMORY", "REDIS"]

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
    """A slot granted to a waiter that is just being cancelled is not passed on."""
    _leak_on(patch, asyncio.CancelledError)


def keep_the_slot_of_a_waiter_out_of_time(patch: Patch) -> None:
    """A slot granted to a waiter whose timer has just fired is not passed on."""
    _leak_on(patch, TimeoutError)


def let_a_raised_limit_wait(patch: Patch) -> None:
    """A raised limit is granted with the next departure only."""
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
    """An eviction grants a slot to the head, whether or not the evicted one had any."""
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


def drop_the_leave_of_an_abandoned_enter(patch: Patch) -> None:
    """A task cancelled while its enter is on its way says nothing more."""

    def abandon(self: Link, command: Command) -> bool:
        command.reply.cancel()
        if command in self._outbox:
            self._outbox.remove(command)
        return False

    patch.setattr(Link, "abandon", abandon)


def give_back_a_grant_that_is_heard_twice(patch: Patch) -> None:
    """The message about a grant that the reply has told already is taken for a second slot."""
    on_message = RedisBackend._on_message

    def suspicious(self: RedisBackend, session: Any, message: bytes) -> None:
        kind, _, rest = message.partition(b" ")
        passage = session.ledger.find(rest.split(b" ")[0].decode())
        if kind == b"granted" and passage is not None and passage.stage is Stage.HOLDING:
            self._say_leave(session, passage.line, passage.ticket.id, passage.blob, passage.breaks)
        on_message(self, session, message)

    patch.setattr(RedisBackend, "_on_message", suspicious)


def forget_a_grant_that_overtakes_the_reply(patch: Patch) -> None:
    """A message about a ticket whose reply is still on its way is thrown away."""
    grant = Ledger.grant

    def deaf(self: Ledger, passage: Any, token: int, released_by: Any) -> None:
        if passage.stage is not Stage.ENTERING:
            grant(self, passage, token, released_by)

    patch.setattr(Ledger, "grant", deaf)


def ignore_what_the_heartbeat_finds(patch: Patch) -> None:
    """The heartbeat renews the lease, and mends nothing."""
    patch.setattr(Heart, "_absorb_corrections", lambda *_: None)


def say_nothing_again(patch: Patch) -> None:
    """What had no reply when the connection broke is taken to have been carried out."""
    take_back = Link._take_back

    def careless(self: Link) -> None:
        self._in_flight = deque(c for c in self._in_flight if c.script.name != "leave")
        take_back(self)

    patch.setattr(Link, "_take_back", careless)


def register_again_in_another_order(patch: Patch) -> None:
    """After a loss of data, waiters get new numbers in the order in which they happen to be listed."""
    restore = Heart._restore

    def unordered(self: Heart, line: Any, known: bytes, unknown: list[bytes]) -> None:
        places = sorted(p.number for p in line.passages.values() if p.stage is Stage.WAITING)
        for passage in line.passages.values():
            if passage.stage is Stage.WAITING:
                passage.number = places.pop()
        restore(self, line, known, unknown)

    patch.setattr(Heart, "_restore", unordered)


MEMORY = (
    keep_the_slot_of_a_cancelled_waiter,
    keep_the_slot_of_a_waiter_out_of_time,
    let_a_raised_limit_wait,
    grant_a_slot_too_many_on_eviction,
)
# With the fault without which they do not show, if there is one.
REDIS = (
    (drop_the_leave_of_an_abandoned_enter, None),
    (give_back_a_grant_that_is_heard_twice, None),
    (forget_a_grant_that_overtakes_the_reply, None),
    (ignore_what_the_heartbeat_finds, "cut"),
    (say_nothing_again, "cut"),
    (register_again_in_another_order, "flush"),
)
