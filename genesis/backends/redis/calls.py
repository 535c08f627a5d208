"""The calls of one queue of this instance: futures around `QueueCore`."""

from __future__ import annotations

import asyncio
from typing import Any

from genesis.backends.protocol import (
    EnterResult,
    Grant,
    LeaveResult,
    Ticket,
    new_tuple,
)
from genesis.backends.redis.core import QueueCore
from genesis.backends.redis.ticket import LocalTicket
from genesis.backends.waiting import fail
from genesis.exceptions import EvictedError

__all__ = ["Call", "LocalQueue"]


class LocalQueue:
    """One queue in which this instance has something, or had within the lease.

    Invariant: `link` is None exactly while `core.up` is false.
    """

    __slots__ = (
        "core",
        "keys",
        "link",
        "queue_id",
        "redirected_at",
        "redirection",
        "rejected_since",
        "timer_at",
    )

    def __init__(self, queue_id: str, keys: tuple[bytes, ...], core: QueueCore) -> None:
        self.queue_id = queue_id
        self.keys = keys
        self.core = core
        self.link: Any = None
        self.timer_at = float("inf")  # when the driver looks at it next
        self.rejected_since: float | None = None  # Redis has rejected its heartbeats and syncs
        self.redirection = ""  # the last MOVED, ASK, CLUSTERDOWN; "" once a script has run
        self.redirected_at = -float("inf")


class Call:
    """One call: what its task awaits.

    `answer` is resolved by the reply to `enter`; `granted` is made when the reply says that it waits.
    Both are only wake-ups: whatever becomes of the task, the ticket is the core's, and the task calls
    `leave`.
    """

    __slots__ = ("answer", "granted", "left", "local", "lost", "observed", "queue", "ticket")

    def __init__(self, queue: LocalQueue, ticket: Ticket, answer: asyncio.Future[EnterResult]) -> None:
        self.queue = queue
        self.ticket = ticket
        self.answer = answer
        self.local: LocalTicket  # set by the caller that makes both
        self.granted: asyncio.Future[Grant] | None = None
        self.lost = False  # only ever turns true
        self.observed = True  # its `Left` is of interest: `enter` has returned it
        self.left: LeaveResult | None = None

    def is_granted(self, grant: Grant) -> None:
        if self.granted is not None:
            if not self.granted.done():
                self.granted.set_result(grant)
        elif not self.answer.done():
            resumed = self.local.resumed
            fields = (self.ticket, grant, 0, 0, None, None, "", resumed, ())
            self.answer.set_result(new_tuple(EnterResult, fields))

    def is_waiting(self, result: EnterResult) -> None:
        self.granted = self.answer.get_loop().create_future()
        if not self.answer.done():
            self.answer.set_result(result)

    def is_evicted(self) -> None:
        if self.granted is None:  # before Redis's reply to `enter` was read
            self.is_waiting(EnterResult(self.ticket, None, 1, 1))
        self.fail(EvictedError(self.ticket.queue_id, self.ticket.item_id))

    def fail(self, error: Exception) -> None:
        """End the wait, in whichever of its two parts it is."""
        future: asyncio.Future[Any] = self.answer if self.granted is None else self.granted
        fail(future, error)
