"""One queue of the memory backend: its waiters in the order of their places, and its holders."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Collection, Iterable
from itertools import islice
from typing import Any

from genesis.backends.estimate import HoldMean
from genesis.backends.protocol import Grant, QueueStats, Ticket

__all__ = ["Line", "Passage", "Waiter"]


class Passage:
    """One ticket in the line: a waiter while `token` is 0, then a holder."""

    __slots__ = ("context", "since", "ticket", "token")

    def __init__(self, ticket: Ticket, since: float, token: int, context: str) -> None:
        self.ticket = ticket
        self.since = since  # when it entered; from the grant on, when it was granted
        self.token = token
        self.context = context


class Waiter(Passage):
    """One that had to wait."""

    __slots__ = ("future", "number", "place")

    def __init__(
        self,
        ticket: Ticket,
        since: float,
        place: float,
        number: int,
        context: str,
        future: asyncio.Future[Grant],
    ) -> None:
        self.ticket = ticket
        self.since = since
        self.token = 0
        self.context = context
        self.place = place  # the time of entering, less the head start
        self.number = number  # decides between equal places
        self.future = future


def _key(waiter: Waiter) -> tuple[float, int]:
    return waiter.place, waiter.number


class Line:
    """One queue in use; dropped as soon as it is empty.

    The order is a list with an index of its head, because a head that leaves must not move the others,
    and a position must be found without a walk. The heads that left are cut off once they are half of
    the list.
    """

    __slots__ = ("_head", "_order", "holding", "holds", "limit", "override", "waiting")

    def __init__(self, limit: int | None, override: int | None, holds: HoldMean) -> None:
        self.limit = limit  # the call sites' number that came last
        self.override = override
        self.holds = holds
        self.holding: dict[str, Passage] = {}  # in the order of the grants
        # In the order of entering. Not a dict: its first key takes longer to find with each that left.
        self.waiting: OrderedDict[str, Waiter] = OrderedDict()
        self._order: list[Any] = []  # of waiters; None before the head
        self._head = 0

    @property
    def effective_limit(self) -> int:
        if self.override is not None:
            return self.override
        return self.limit or 1

    def add(self, waiter: Waiter) -> int:
        """Put a waiter in its place; returns its position."""
        order = self._order
        self.waiting[waiter.ticket.id] = waiter
        if len(order) == self._head or _key(order[-1]) < (waiter.place, waiter.number):
            order.append(waiter)
            return len(order) - self._head
        index = self._index(waiter)
        order.insert(index, waiter)
        return index - self._head + 1

    def take_head(self) -> Waiter:
        """Remove the waiter that is next."""
        head: Waiter = self._order[self._head]
        self._order[self._head] = None
        self._head += 1
        if self._head * 2 > len(self._order):
            del self._order[: self._head]
            self._head = 0
        del self.waiting[head.ticket.id]
        return head

    def remove(self, waiter: Waiter) -> None:
        """Remove a waiter from wherever it stands."""
        del self._order[self._index(waiter)]
        del self.waiting[waiter.ticket.id]

    def position(self, waiter: Waiter) -> int:
        """1 is next."""
        return self._index(waiter) - self._head + 1

    def in_order(self) -> Iterable[Waiter]:
        """The waiters in the order in which they will be granted."""
        return islice(self._order, self._head, None)

    def first_of(self, item_ids: Collection[str]) -> dict[str, Waiter]:
        """Of the waiters with each of these ids, the one that is next."""
        found: dict[str, Waiter] = {}
        for waiter in self.in_order():
            item_id = waiter.ticket.item_id
            if item_id in item_ids and item_id not in found:
                found[item_id] = waiter
        return found

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
        return bisect_left(self._order, _key(waiter), self._head, key=_key)
