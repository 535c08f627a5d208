"""One queue of the memory backend: its waiters, ordered by place, and its holders."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TypeAlias

from genesis.backends.estimate import HoldMean
from genesis.backends.protocol import Grant, QueueStats, Ticket

Place: TypeAlias = tuple[float, int]
"""The time of entering less the head start, and a number that orders equal times."""

_place = attrgetter("place")


@dataclass(eq=False, slots=True)
class LocalTicket:
    """One ticket in the queue: a waiter while `token` is 0, then a holder."""

    ticket: Ticket
    since: float  # a waiter's time of entering, a holder's time of its grant
    token: int
    context: str


@dataclass(eq=False, slots=True)
class Waiter(LocalTicket):
    """A ticket that had to wait. It keeps this type when it becomes a holder."""

    place: Place
    future: asyncio.Future[Grant]


@dataclass(eq=False, slots=True)
class Line:
    """One queue. While nobody waits or holds, only its mean hold is still meaningful."""

    holds: HoldMean = field(default_factory=HoldMean)
    holding: dict[str, LocalTicket] = field(default_factory=dict)  # in the order of the grants
    waiting: dict[str, Waiter] = field(default_factory=dict)  # in the order of entering
    order: deque[Waiter] = field(default_factory=deque)  # the same waiters, ordered by place
    # By item_id, one waiter each. If `len(named) == len(waiting)`, no waiter is hidden behind another
    # of the same item_id.
    named: dict[str, Waiter] = field(default_factory=dict)
    limit: int | None = None  # the last `max_concurrent` of a call site
    override: int | None = None
    effective_limit: int = 1

    def set_limit(self, limit: int | None, override: int | None) -> None:
        self.limit = limit
        self.override = override
        self.effective_limit = (limit or 1) if override is None else override

    def add(self, waiter: Waiter) -> int:
        """Insert a waiter by place. Returns its position."""
        order = self.order
        _, item_id, key = waiter.ticket
        self.waiting[key] = waiter
        self.named.setdefault(item_id, waiter)
        if order and order[-1].place > waiter.place:
            index = self._index(waiter)
            order.insert(index, waiter)
            return index + 1
        order.append(waiter)
        return len(order)

    def remove(self, waiter: Waiter) -> None:
        """Remove a waiter at any position."""
        _, item_id, key = waiter.ticket
        del self.order[self._index(waiter)]
        del self.waiting[key]
        if self.named.get(item_id) is waiter:
            del self.named[item_id]

    def first_by_item(self) -> dict[str, Waiter]:
        """By item_id, the first waiter in line."""
        if len(self.named) == len(self.waiting):
            return self.named
        return {waiter.ticket.item_id: waiter for waiter in reversed(self.order)}

    def position(self, waiter: Waiter) -> int:
        """1 is next."""
        return self._index(waiter) + 1

    def stats(self, now: float) -> QueueStats:
        waiting, holding = self.waiting, self.holding
        return QueueStats(
            len(waiting),
            len(holding),
            self.effective_limit,
            now - next(iter(waiting.values())).since if waiting else 0.0,
            now - next(iter(holding.values())).since if holding else 0.0,
            self.holds.value,
        )

    def _index(self, waiter: Waiter) -> int:
        return bisect_left(self.order, waiter.place, key=_place)
