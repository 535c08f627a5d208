"""`InMemoryBackend`: queues in one process, with no server and no lease, and with the same promises.

No method awaits while it changes state, so each is atomic in its event loop, and the invariant needs no
lock::

    a line never has a free slot and a waiter at the same time

Every method that frees or adds a slot restores the invariant. `leave` grants once, because it frees at
most one slot; all others call `_hand_over`. A granted waiter is a holder from that instant, even if its
task is being cancelled: the task calls `leave`, as every task does, and the slot passes on. A grant
therefore ignores the state of the waiter's task. anyio and trio resolve this race the same way.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from asyncio import get_running_loop
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextvars import Context
from itertools import islice
from typing import NamedTuple

from genesis.backends.estimate import expected_wait
from genesis.backends.identity import Identity
from genesis.backends.line import Line, LocalTicket, Place, Waiter
from genesis.backends.places import PlaceToken, decode
from genesis.backends.protocol import (
    BackendEvent,
    CallRef,
    EnterRequest,
    EnterResult,
    Grant,
    LeaveResult,
    LimitDisagreement,
    Listener,
    QueueEntry,
    QueueStats,
    SlotLost,
    Snapshot,
    Ticket,
    WaitStatus,
    new_tuple,
)
from genesis.backends.waiting import fail, until_granted
from genesis.exceptions import BackendUnavailableError, EvictedError

_WAS_HOLDING, _WAS_WAITING, _HAD_NOTHING = map(LeaveResult, ("holding", "waiting", None))
_MAX_IDLE = 1_000  # queues whose mean hold is remembered
_MAX_PER_TURN = 500  # queues reported per iteration of the event loop
_HOLDERS_SHOWN = 5


class _KeptPlace(NamedTuple):
    place: Place
    until: float


class InMemoryBackend:
    """Keeps queues in this process, for one event loop at a time. Nothing outlives the process.

    Args:
        clock: returns monotonic seconds, for ages and places; replaced in tests.
    """

    name = "memory"
    heartbeat_interval = 5.0

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._identity = Identity()
        self.store = f"memory:{self._identity.id}"
        self._clock = clock
        self._listener: Listener | None = None
        self._lines: dict[str, Line] = {}  # queues in use
        self._overrides: dict[str, int] = {}
        self._kept: dict[PlaceToken, _KeptPlace] = {}
        # For their mean hold; the one idle for longest comes first. Not a dict: removing the first
        # key of a dict takes longer with each one.
        self._idle: OrderedDict[str, Line] = OrderedDict()
        # One counter for all queues: tokens must increase in each queue, and the state of an idle
        # queue, its own counter included, might be dropped.
        self._numbers = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._moves = 0  # from one loop to another
        self._closed = False

    @property
    def instance_id(self) -> str:
        if self._loop is None:
            self._identity.renew_if_forked()
        return self._identity.id

    def listen(self, listener: Listener) -> None:
        if self._listener is not None:
            raise RuntimeError(
                "this InMemoryBackend already belongs to a Queue; make a new backend for each Queue, "
                "or share the Queue"
            )
        self._listener = listener

    async def enter(self, request: EnterRequest) -> EnterResult:
        queue_id, item_id, limit, context, max_waiting, head_start, token, _ = request
        if self._closed:
            raise self._closed_error("enter", queue_id, item_id)
        loop = get_running_loop()
        if loop is not self._loop:
            self._move_to(loop)
        line = self._lines.get(queue_id)
        if line is None:
            line = self._open_line(queue_id, limit)
        elif limit is not None and limit != line.limit:
            self._adopt_limit(queue_id, line, limit)
        number = next(self._numbers)
        key = str(number)
        ticket = new_tuple(Ticket, (queue_id, item_id, key))
        if not line.waiting and len(line.holding) < line.effective_limit:
            line.holding[key] = LocalTicket(ticket, self._clock(), number, context)
            grant = new_tuple(Grant, (number, None, 0.0))
            resumed = token != "" and self._take_place(token) is not None
            return new_tuple(EnterResult, (ticket, grant, 0, 0, None, None, resumed, ()))
        if max_waiting is not None and len(line.waiting) >= max_waiting:
            return self._refused(line, ticket)
        now = self._clock()
        kept = self._take_place(token) if token else None
        place = kept.place if kept is not None else (now - head_start if head_start else now, number)
        position = line.add(Waiter(ticket, now, 0, context, place, loop.create_future()))
        holders = self._first_holders(line) if context else ()
        depth = len(line.waiting)
        return new_tuple(
            EnterResult,
            (ticket, None, position, depth, None, place[0], kept is not None, holders),
        )

    async def wait(self, ticket: Ticket, timeout: float | None) -> Grant:
        line = self._lines.get(ticket.queue_id)
        waiter = line and (line.waiting.get(ticket.id) or line.holding.get(ticket.id))
        if not isinstance(waiter, Waiter):
            self._check("wait", *ticket[:2])
            raise EvictedError(ticket.queue_id, ticket.item_id)
        return await until_granted(waiter.future, timeout)

    def leave(self, ticket: Ticket, context: str = "", keep_place: float = 0.0) -> LeaveResult:
        line = self._lines.get(ticket.queue_id)
        if line is None:
            return _HAD_NOTHING
        holder = line.holding.pop(ticket.id, None)
        if holder is None:
            waiter = line.waiting.get(ticket.id)
            if waiter is None:
                return _HAD_NOTHING
            line.remove(waiter)
            if keep_place:
                self._keep_place(waiter, keep_place)
            result = _WAS_WAITING  # this freed no slot, so there is nothing to grant
        else:
            if keep_place and isinstance(holder, Waiter):  # granted while it was being cancelled
                self._keep_place(holder, keep_place)
            else:
                line.holds.add(self._clock() - holder.since)
            result = _WAS_HOLDING
            if line.waiting and len(line.holding) < line.effective_limit:
                leaver = new_tuple(CallRef, (ticket.item_id, self._identity.id, context))
                return new_tuple(LeaveResult, ("holding", (self._grant_head(line, leaver),)))
        if not line.holding and not line.waiting:
            self._idle[ticket.queue_id] = self._lines.pop(ticket.queue_id)
        return result

    async def flush(self) -> None:
        """Return at once: `leave` is synchronous here."""

    def lapsed(self, ticket: Ticket) -> bool:
        # There is no lease to lapse, but an eviction or `close` takes the slot.
        line = self._lines.get(ticket.queue_id)
        return line is None or ticket.id not in line.holding

    async def set_limit(self, queue_id: str, limit: int | None) -> None:
        line = self._line("set_limit", queue_id)
        if limit is None:
            self._overrides.pop(queue_id, None)
        else:
            self._overrides[queue_id] = limit
        line.set_limit(line.limit, limit)
        self._hand_over(line)

    async def stats(self, queue_id: str) -> QueueStats:
        return self._line("stats", queue_id).stats(self._clock())

    async def wait_status(
        self, queue_id: str, wanted: Sequence[Ticket | str]
    ) -> list[WaitStatus | None]:
        line = self._line("wait_status", queue_id)
        first = line.first_by_item() if any(isinstance(item, str) for item in wanted) else {}
        now, depth = self._clock(), len(line.waiting)
        found: list[WaitStatus | None] = []
        for item in wanted:
            waiter = first.get(item) if isinstance(item, str) else line.waiting.get(item.id)
            if waiter is None:
                found.append(None)
                continue
            position = line.position(waiter)
            expected = expected_wait(position, line.effective_limit, line.holds.value)
            found.append(WaitStatus(position, depth, now - waiter.since, expected))
        return found

    async def entries(self, queue_id: str) -> list[QueueEntry]:
        line, now, instance = self._line("entries", queue_id), self._clock(), self._identity.id
        holders = [
            QueueEntry(p.ticket.item_id, instance, "holding", now - p.since, None, p.token)
            for p in line.holding.values()
        ]
        return holders + [
            QueueEntry(p.ticket.item_id, instance, "waiting", now - p.since, position, None)
            for position, p in enumerate(line.order, 1)
        ]

    async def evict(self, queue_id: str, item_id: str) -> int:
        line = self._line("evict", queue_id)
        waiters = [p for p in line.waiting.values() if p.ticket.item_id == item_id]
        holders = [p for p in line.holding.values() if p.ticket.item_id == item_id]
        for waiter in waiters:
            line.remove(waiter)
            fail(waiter.future, EvictedError(queue_id, item_id))
        for holder in holders:
            del line.holding[holder.ticket.id]
        self._hand_over(line)
        if not line.holding and not line.waiting and queue_id in self._lines:
            self._idle[queue_id] = self._lines.pop(queue_id)
        for holder in holders:  # last: the listener might call this backend
            self._emit(SlotLost(holder.ticket, "evicted"))
        return len(waiters) + len(holders)

    async def ping(self) -> None:
        self._check("ping")

    async def close(self) -> None:
        if self._closed:
            return
        self._check("close")
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        lines, self._lines = self._lines, {}
        self._kept.clear()
        for line in lines.values():
            for waiter in line.waiting.values():
                fail(waiter.future, self._closed_error("wait", *waiter.ticket[:2]))
            for holder in line.holding.values():
                self._emit(SlotLost(holder.ticket, "closed"))

    def _refused(self, line: Line, ticket: Ticket) -> EnterResult:
        depth = len(line.waiting)
        if not line.holding and not depth:
            self._idle[ticket.queue_id] = self._lines.pop(ticket.queue_id)
        expected = expected_wait(depth + 1, line.effective_limit, line.holds.value)
        return EnterResult(ticket, None, 0, depth, expected)

    def _take_place(self, token: str) -> _KeptPlace | None:
        """Remove and return the place that `token` names; None if it is not kept."""
        kept = self._kept.pop(decode(token), None)
        return kept if kept is not None and kept.until > self._clock() else None

    def _keep_place(self, waiter: Waiter, seconds: float) -> None:
        token = PlaceToken(waiter.ticket.queue_id, waiter.ticket.id, waiter.place[0])
        self._kept[token] = _KeptPlace(waiter.place, self._clock() + seconds)

    def _open_line(self, queue_id: str, limit: int | None) -> Line:
        line = self._idle.pop(queue_id, None)
        if line is None:
            while len(self._idle) >= _MAX_IDLE:
                self._idle.popitem(last=False)
            line = Line()
        self._lines[queue_id] = line
        override = self._overrides.get(queue_id)
        if limit != line.limit or override != line.override:
            line.set_limit(limit, override)
        if self._timer is None:
            self._arm()
        return line

    def _line(self, operation: str, queue_id: str) -> Line:
        """The queue as an operation that is no step of a call sees it; an empty line if it is idle."""
        self._check(operation, queue_id)
        line = self._lines.get(queue_id)
        if line is None:
            line = self._idle.get(queue_id) or Line()
            line.set_limit(None, self._overrides.get(queue_id))
        return line

    def _adopt_limit(self, queue_id: str, line: Line, limit: int) -> None:
        previous = line.limit
        line.set_limit(limit, line.override)
        # Before the newcomer enters: a raised limit must serve those who already wait first.
        self._hand_over(line)
        if previous is not None:
            self._emit(LimitDisagreement(queue_id, previous, limit))

    def _hand_over(self, line: Line) -> None:
        """Grant the free slots to the heads of the line, in order."""
        while line.waiting and len(line.holding) < line.effective_limit:
            self._grant_head(line, None)

    def _grant_head(self, line: Line, released_by: CallRef | None) -> CallRef:
        """Grant a free slot to the head of the line. Returns that call."""
        head = line.order.popleft()
        _, item_id, key = head.ticket
        del line.waiting[key]
        if line.named.get(item_id) is head:
            del line.named[item_id]
        line.holding[key] = head
        head.token = token = next(self._numbers)
        head.since = self._clock()
        if not head.future.done():
            head.future.set_result(new_tuple(Grant, (token, released_by, 0.0)))
        return new_tuple(CallRef, (item_id, self._identity.id, head.context))

    def _first_holders(self, line: Line) -> tuple[CallRef, ...]:
        first = islice(line.holding.values(), _HOLDERS_SHOWN)
        return tuple(CallRef(p.ticket.item_id, self._identity.id, p.context) for p in first)

    def _report(self) -> None:
        """Emit a `Snapshot` of every queue in use, as a shared backend does with its heartbeat."""
        self._timer = None
        now = self._clock()
        for token in [token for token, kept in self._kept.items() if kept.until <= now]:
            del self._kept[token]
        self._show(self._moves, [*self._lines])
        if self._lines or self._kept:
            self._arm()

    def _show(self, moves: int, queue_ids: list[str]) -> None:
        if moves != self._moves:
            return
        now = self._clock()
        for queue_id in queue_ids[:_MAX_PER_TURN]:
            if (line := self._lines.get(queue_id)) is not None:
                self._emit(Snapshot(queue_id, line.stats(now)))
        if rest := queue_ids[_MAX_PER_TURN:]:
            get_running_loop().call_soon(self._show, moves, rest, context=Context())

    def _arm(self) -> None:
        # An empty context: the timers would keep the context of the first call, and everything in it,
        # alive for as long as a queue is in use.
        assert self._loop is not None
        self._timer = self._loop.call_later(
            self.heartbeat_interval, self._tick, self._moves, context=Context()
        )

    def _tick(self, moves: int) -> None:
        # Otherwise it is the timer of a loop that was left, which might run in another thread.
        if moves == self._moves:
            self._report()

    def _emit(self, event: BackendEvent) -> None:
        if self._listener is not None:
            self._listener(event)

    def _move_to(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve another event loop from now on, unless the current one still has calls here.

        The calls of a closed loop can never leave, so they are dropped.
        """
        if self._loop is not None and self._lines and not self._loop.is_closed():
            raise RuntimeError(
                "this InMemoryBackend has calls in another event loop; use a Queue in one event loop "
                "at a time, or RedisBackend to share a line between threads"
            )
        self._lines.clear()
        self._identity.renew_if_forked()
        self._loop, self._timer, self._moves = loop, None, self._moves + 1

    def _check(self, operation: str, queue_id: str = "", item_id: str = "") -> None:
        if self._closed:
            raise self._closed_error(operation, queue_id, item_id)
        loop = get_running_loop()
        if loop is not self._loop:
            self._move_to(loop)

    def _closed_error(self, operation: str, queue_id: str, item_id: str) -> BackendUnavailableError:
        closed = BackendUnavailableError.CLOSED
        return BackendUnavailableError(self.name, operation, closed, queue_id, item_id)
