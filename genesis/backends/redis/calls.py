"""The calls and queues of this instance: a core's output becomes futures and events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from genesis.backends.protocol import (
    BackendEvent,
    CallRef,
    EnterRequest,
    EnterResult,
    Grant,
    LeaveResult,
    Left,
    LimitDisagreement,
    Refusal,
    SlotLost,
    Ticket,
    new_tuple,
)
from genesis.backends.redis.core import QueueCore
from genesis.backends.redis.scripts import load
from genesis.backends.redis.ticket import Command, LocalTicket, Sessions, Stage
from genesis.backends.waiting import fail
from genesis.exceptions import BackendUnavailableError, EvictedError

if TYPE_CHECKING:
    from genesis.backends.redis.driver import Driver

__all__ = ["Call", "LocalQueue", "unavailable"]

unavailable = partial(BackendUnavailableError, "redis")
"""Args: operation, cause, queue_id, item_id; the ids might be ''."""


class Call(LocalTicket):
    """One call, and the futures that its task awaits.

    The reply to `enter` resolves `answer`. If the call must wait, that reply also creates `granted`.
    Both futures are only wake-ups: the core owns the ticket whatever happens to the task, and the task
    calls `leave`.
    """

    __slots__ = ("answer", "granted", "lost", "observed", "queue", "result", "ticket")

    def __init__(
        self,
        queue: LocalQueue,
        member: bytes,
        request: EnterRequest,
        kept: bytes,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        limit, most = request.limit, request.max_waiting
        super().__init__(
            member,
            b"" if limit is None else b"%d" % limit,
            request.only_if_free,
            b"" if most is None else b"%d" % most,
            kept,
        )
        self.queue = queue
        self.ticket = Ticket(request.queue_id, request.item_id, self.id.decode())
        self.answer: asyncio.Future[EnterResult] = loop.create_future()
        self.granted: asyncio.Future[Grant] | None = None
        self.lost = False  # never reset
        self.observed = True  # emit its `Left`: `enter` has returned this ticket
        self.result: LeaveResult | None = None

    def answered(self, result: EnterResult) -> None:
        if not self.answer.done():
            self.answer.set_result(result)

    def fail(self, error: Exception) -> None:
        """End the wait with an error, whether it is for `answer` or for `granted`."""
        future: asyncio.Future[Any] = self.answer if self.granted is None else self.granted
        fail(future, error)


class LocalQueue:
    """One queue in which this instance has tickets, or had some within the last lease.

    Invariant: `link` is None exactly while `core.up` is false.
    """

    __slots__ = (
        "core", "driver", "keys", "link", "queue_id", "redirected_at", "redirection", "rejected_since",
        "timer_at",
    )  # fmt: skip

    def __init__(
        self, driver: Driver, queue_id: str, keys: tuple[bytes, ...], sessions: Sessions
    ) -> None:
        self.driver = driver
        self.queue_id = queue_id
        self.keys = keys
        self.core = QueueCore(queue_id, self, sessions, driver.lease)
        self.link: Any = None
        self.timer_at = float("inf")  # the driver's next tick of this queue
        self.rejected_since: float | None = None  # when Redis began to reject heartbeats and syncs
        self.redirection = ""  # the last MOVED, ASK or CLUSTERDOWN; "" after a script has run
        self.redirected_at = -float("inf")

    def call(
        self,
        script: str,
        session: bytes,
        arguments: tuple[bytes, ...],
        on_reply: Callable[[Any], None],
        urgent: bool = True,
    ) -> bool:
        """See `Link.send`. Args: session, b"" for none; arguments, ARGV from the fifth on."""
        if self.link is None:
            return False
        keys, driver = self.keys, self.driver
        words = (driver.head, session, *driver.tail, *arguments)
        parts = (b"EVALSHA", load(script).sha, b"%d" % len(keys), *keys, *words)
        sent: bool = self.link.send(parts, on_reply, urgent)
        return sent

    # The output of the core, see `Output`

    def send(self, command: Command) -> None:
        on_reply = partial(self.driver.replied, self, command)
        # Without waiters a release is not urgent: it is written with the next command.
        urgent = self.core.crowded or command.name != "leave"
        self.call(command.name, b"%d" % command.session, command.arguments, on_reply, urgent)

    def emit(self, event: BackendEvent) -> None:
        if isinstance(event, LimitDisagreement):
            self.driver.index.disagreed(*event)
        self.driver.emit(event)

    def granted(self, call: Call, by: CallRef | None) -> None:
        grant = Grant(call.number, by)
        if call.granted is None:
            fields = (call.ticket, grant, 0, 0, None, None, None, call.resumed, ())
            call.answered(new_tuple(EnterResult, fields))
        elif not call.granted.done():
            call.granted.set_result(grant)

    def waiting(self, call: Call, position: int, depth: int, holders: tuple[CallRef, ...]) -> None:
        call.granted = call.answer.get_loop().create_future()
        position, depth = max(1, position), max(1, depth)
        place, resumed = call.number, call.resumed
        call.answered(
            EnterResult(call.ticket, None, position, depth, None, None, place, resumed, holders)
        )

    def refused(self, call: Call, reason: Refusal, depth: int, retry_after: float | None) -> None:
        call.answered(EnterResult(call.ticket, None, 0, depth, reason, retry_after))

    def failed(self, call: Call, error: Exception) -> None:
        call.fail(unavailable("enter", self.driver.router.redact(error), *call.ticket[:2]))

    def evicted(self, call: Call) -> None:
        if call.granted is None:  # before Redis's reply to `enter` was read
            call.granted = call.answer.get_loop().create_future()
            call.answered(EnterResult(call.ticket, None, 1, 1))
        call.fail(EvictedError(*call.ticket[:2]))

    def out_of_reach(self, call: Call) -> None:
        self._lose_place(call, self.driver.why_down(self))

    def _lose_place(self, call: Any, cause: str) -> None:
        why = (
            f"it has renewed nothing for longer than the lease of {self.driver.lease:g} s ({cause}), "
            "so the place in line is lost"
        )
        call.fail(unavailable("wait", why, *call.ticket[:2]))

    def lost(self, call: Call, reason: Literal["lapsed", "reaped", "evicted", "closed"]) -> None:
        if not call.lost:
            call.lost = True
            self.driver.emit(SlotLost(call.ticket, reason))

    def left(self, call: Call, result: LeaveResult, confirmed: bool) -> None:
        call.result = result
        if call.observed:
            self.driver.emit(Left(call.ticket, result, confirmed))
        self.driver.forget(call)

    def rejected(self, command: str, error: Exception) -> None:
        driver, now = self.driver, self.driver.loop.time()
        if self.rejected_since is None:
            self.rejected_since = now
        detail = f"queue {self.queue_id!r}: {command}: {driver.router.redact(error)}"
        driver.is_down(f"queue {self.queue_id}", "refused", detail)
        if now - self.rejected_since >= driver.lease:  # connected, but not renewed: places are lost
            for call in self.core.tickets.values():
                if call.stage is Stage.WAITING and call.wanted:
                    self._lose_place(call, detail)
