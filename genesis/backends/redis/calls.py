"""The calls and queues of this instance: a core's output becomes futures and events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from genesis.backends.places import decode
from genesis.backends.protocol import (
    BackendEvent,
    CallRef,
    EnterRequest,
    EnterResult,
    Grant,
    LeaveResult,
    Left,
    LimitDisagreement,
    SlotLost,
    Ticket,
    new_tuple,
)
from genesis.backends.redis.core import QueueCore
from genesis.backends.redis.errors import reason_of
from genesis.backends.redis.members import make_member
from genesis.backends.redis.scripts import load
from genesis.backends.redis.ticket import Command, LocalTicket, Stage
from genesis.backends.waiting import fail
from genesis.exceptions import BackendUnavailableError, EvictedError

if TYPE_CHECKING:
    from genesis.backends.redis.driver import Driver

unavailable = partial(BackendUnavailableError, "redis")
"""Args: operation, cause, queue_id, item_id; the ids might be ''."""


class Call(LocalTicket):
    """One call, and the futures that its task awaits.

    The reply to `enter` resolves `answer`. If the call must wait, that reply also creates `granted`.
    Both futures are only wake-ups: the core owns the ticket whatever happens to the task, and the task
    calls `leave`.
    """

    __slots__ = ("answer", "granted", "observed", "queue", "result", "ticket")

    def __init__(self, queue: LocalQueue, request: EnterRequest) -> None:
        driver, limit, most = queue.driver, request.limit, request.max_waiting
        serial, context = next(driver.serials), request.context
        super().__init__(
            make_member(driver.instance_id, serial, request.head_start, context, request.item_id),
            b"" if limit is None else b"%d" % limit,
            b"" if most is None else b"%d" % most,
            _kept(request.place_token),
        )
        self.queue = queue
        self.ticket = Ticket(request.queue_id, request.item_id, self.id.decode())
        self.answer: asyncio.Future[EnterResult] = driver.loop.create_future()
        self.granted: asyncio.Future[Grant] | None = None
        self.observed = False  # emit its `Left`: `leave` has returned None
        self.result: LeaveResult | None = None

    @property
    def waits(self) -> bool:
        return self.wanted and self.stage is Stage.WAITING

    def answered(self, result: EnterResult) -> None:
        if not self.answer.done():
            self.answer.set_result(result)

    def fail(self, cause: str) -> None:
        """End the wait, whether it is for `answer` or for `granted`: Redis cannot be reached."""
        future: asyncio.Future[Any] = self.answer if self.granted is None else self.granted
        operation = "enter" if self.granted is None else "wait"
        fail(future, unavailable(operation, cause, *self.ticket[:2]))


def _kept(token: str) -> bytes:
    """Convert a place token to `<kept id> <place>`."""
    if not token:
        return b""
    place = decode(token)
    return f"{place.kept_id} {place.place:.0f}".encode()


class LocalQueue(QueueCore):
    """One queue in which this instance has tickets, or had some within the last lease.

    Invariant: `link` is None exactly while `up` is false.
    """

    def __init__(self, driver: Driver, queue_id: str, keys: tuple[bytes, ...]) -> None:
        super().__init__(queue_id, driver.lease)
        self.driver = driver
        self.keys = keys
        self.link: Any = None
        # By item_id, one of `tickets` each. If both have the same length, no ticket is hidden behind
        # another of the same item_id.
        self.named: dict[str, Call] = {}
        self.timer_at = float("inf")  # the driver's next tick of this queue
        self.rejection = ""  # the last error reply to another command than `enter`
        self.redirection = ""  # the last MOVED, ASK or CLUSTERDOWN; "" after a script has run
        self.redirected_at = -float("inf")

    def call(
        self,
        script: str,
        session: bytes,
        arguments: tuple[bytes, ...],
        on_reply: Callable[[Any], None],
    ) -> bool:
        """See `Link.send`. Args: session, b"" for none; arguments, ARGV from the fifth on."""
        if self.link is None:
            return False
        keys, driver = self.keys, self.driver
        words = (driver.head, session, *driver.tail, *arguments)
        parts = (b"EVALSHA", load(script).sha, b"%d" % len(keys), *keys, *words)
        sent: bool = self.link.send(parts, on_reply)
        return sent

    def first_by_item(self) -> dict[str, Any]:
        """By item_id, this instance's first waiter in line; for other items perhaps another call."""
        if len(self.named) == len(self.tickets):
            return self.named
        calls: Iterable[Any] = self.tickets.values()
        waiting = sorted((call for call in calls if call.waits), key=lambda call: -call.number)
        return {call.ticket.item_id: call for call in waiting}

    # The output of the core, see `Output`

    def send(self, command: Command) -> None:
        on_reply = partial(self.driver.replied, self, command)
        self.call(command.name, b"%d" % command.session, command.arguments, on_reply)

    def next_session(self, above: int) -> int:
        self.driver.last_session = max(self.driver.last_session, above) + 1
        return self.driver.last_session

    def emit(self, event: BackendEvent) -> None:
        if isinstance(event, LimitDisagreement):
            self.driver.index.disagreed(*event)
        self.driver.emit(event)

    def granted(self, call: Call, by: CallRef | None) -> None:
        grant = Grant(call.number, by)
        if call.granted is None:
            fields = (call.ticket, grant, 0, 0, None, None, call.resumed, ())
            call.answered(new_tuple(EnterResult, fields))
        elif not call.granted.done():
            call.granted.set_result(grant)

    def waiting(self, call: Call, position: int, depth: int, holders: tuple[CallRef, ...]) -> None:
        call.granted = call.answer.get_loop().create_future()
        position, depth = max(1, position), max(1, depth)
        place, resumed = call.number, call.resumed
        call.answered(EnterResult(call.ticket, None, position, depth, None, place, resumed, holders))

    def refused(self, call: Call, depth: int, retry_after: float | None) -> None:
        call.answered(EnterResult(call.ticket, None, 0, depth, retry_after))

    def failed(self, call: Call, error: Exception) -> None:
        call.fail(self.driver.router.redact(error))

    def evicted(self, call: Call) -> None:
        if call.granted is None:  # before Redis's reply to `enter` was read
            call.granted = call.answer.get_loop().create_future()
            call.answered(EnterResult(call.ticket, None, 1, 1))
        fail(call.granted, EvictedError(*call.ticket[:2]))

    def out_of_reach(self, call: Call) -> None:
        cause = self.driver.why_down(self) or self.rejection
        call.fail(
            f"it has renewed nothing for longer than the lease of {self.driver.lease:g} s ({cause}), "
            "so the place in line is lost"
        )

    def lost(self, call: Call, reason: Literal["lapsed", "reaped", "evicted"]) -> None:
        self.driver.emit(SlotLost(call.ticket, reason))

    def left(self, call: Call, result: LeaveResult, confirmed: bool) -> None:
        call.result = result
        item_id = call.ticket.item_id
        if self.named.get(item_id) is call:
            del self.named[item_id]
        if call.observed:
            self.driver.emit(Left(call.ticket, result, confirmed))
        self.driver.forget(call)

    def rejected(self, command: str, error: Exception) -> None:
        self.rejection = f"queue {self.queue_id!r}: {command}: {self.driver.router.redact(error)}"
        self.driver.is_down(f"queue {self.queue_id}", reason_of(error), self.rejection)
