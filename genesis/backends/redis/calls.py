"""The local state of a queue, and the futures of its calls."""

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
    """One queue in which this instance has tickets, or had some within the last lease.

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
        self.timer_at = float("inf")  # the driver's next tick of this queue
        self.rejected_since: float | None = None  # when Redis began to reject heartbeats and syncs
        self.redirection = ""  # the last MOVED, ASK or CLUSTERDOWN; "" after a script has run
        self.redirected_at = -float("inf")


class Call:
    """One call, and the futures that its task awaits.

    The reply to `enter` resolves `answer`. If the call must wait, that reply also creates `granted`.
    Both futures are only wake-ups: the core owns the ticket whatever happens to the task, and the task
    calls `leave`.
    """

    __slots__ = ("answer", "granted", "left", "local", "lost", "observed", "queue", "ticket")

    def __init__(self, queue: LocalQueue, ticket: Ticket, answer: asyncio.Future[EnterResult]) -> None:
        self.queue = queue
        self.ticket = ticket
        self.answer = answer
        self.local: LocalTicket  # set by the code that creates both
        self.granted: asyncio.Future[Grant] | None = None
        self.lost = False  # never reset
        self.observed = True  # emit its `Left`: `enter` has returned this ticket
        self.left: LeaveResult | None = None

    def is_granted(self, grant: Grant) -> None:
        if self.granted is not None:
            if not self.granted.done():
                self.granted.set_result(grant)
        elif not self.answer.done():
            resumed = self.local.resumed
            fields = (self.ticket, grant, 0, 0, None, None, None, resumed, ())
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
        """End the wait with an error, whether it is for `answer` or for `granted`."""
        future: asyncio.Future[Any] = self.answer if self.granted is None else self.granted
        fail(future, error)
