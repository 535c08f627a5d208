"""The line in one process: no server, no lease, the same promises.

Everything here happens between two await points of one event loop, so each method is atomic by itself
and the invariant needs no lock::

    a line never has a free slot and a waiter at the same time

Every method that frees a slot or adds one restores it: `leave` by one grant, because it frees one slot
at most, all others by `_hand_over`. A waiter that was granted is a holder from that instant, even if
its task is just being cancelled; that task calls `leave`, as every task does, and the slot passes on.
So a grant never has to look at the state of the task it is for (anyio and trio decide it the same way).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from asyncio import get_running_loop
from collections.abc import Callable, Sequence
from contextvars import Context
from itertools import islice
from typing import NamedTuple

from genesis.backends.estimate import expected_wait
from genesis.backends.identity import new_instance_id
from genesis.backends.line import Line, Passage, Waiter
from genesis.backends.places import decode, encode
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

__all__ = ["InMemoryBackend"]

_WAS_HOLDING, _WAS_WAITING, _HAD_NOTHING = map(LeaveResult, ("holding", "waiting", None))
_MOST_KNOWN = 1_000
_HOLDERS_SHOWN = 5


class _KeptPlace(NamedTuple):
    queue_id: str
    place: float
    number: int
    until: float


class InMemoryBackend:
    """Keeps queues in this process, for one event loop at a time. Nothing survives it.

    Args:
        clock: monotonic seconds, for ages and places; injected by tests.
    """

    name = "memory"
    heartbeat_interval = 5.0

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.instance_id = new_instance_id()
        self.store = f"memory:{self.instance_id}"
        self._clock = clock
        self._listener: Listener | None = None
        self._lines: dict[str, Line] = {}
        self._overrides: dict[str, int] = {}
        self._kept: dict[str, _KeptPlace] = {}  # by the id of the ticket whose place it was
        # Of queues in use and of idle ones, whose mean hold is of use to the next callers.
        self._known: dict[str, Line] = {}
        # One counter for all queues: tokens grow strictly in each of them, although an idle queue
        # leaves no state behind from which its own counter could go on.
        self._numbers = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def listen(self, listener: Listener) -> None:
        if self._listener is not None:
            raise RuntimeError(
                "this InMemoryBackend already belongs to a Queue; make a new backend for each Queue, "
                "or share the Queue"
            )
        self._listener = listener

    async def enter(self, request: EnterRequest) -> EnterResult:
        queue_id, item_id, limit, only_if_free, context, max_waiting, head_start, token, _ = request
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
            line.holding[key] = Passage(ticket, self._clock(), number, context)
            grant = new_tuple(Grant, (number, None, 0.0))
            resumed = token != "" and self._take_place(request) is not None
            return new_tuple(EnterResult, (ticket, grant, 0, 0, None, None, "", resumed, ()))
        if only_if_free or max_waiting is not None:
            refusal = self._refusal(line, ticket, only_if_free, max_waiting)
            if refusal is not None:
                return refusal
        now = place = self._clock()
        kept = self._take_place(request) if token else None
        if kept is not None:
            place, number = kept.place, kept.number
        elif head_start:
            place = now - head_start
        position = line.add(Waiter(ticket, now, place, number, context, loop.create_future()))
        holders = self._first_holders(line) if context else ()
        token = encode(queue_id, key, place)
        depth = len(line.waiting)
        return new_tuple(
            EnterResult, (ticket, None, position, depth, None, None, token, kept is not None, holders)
        )

    async def wait(self, ticket: Ticket, timeout: float | None) -> Grant:
        line = self._lines.get(ticket.queue_id)
        passage = line and (line.waiting.get(ticket.id) or line.holding.get(ticket.id))
        if not passage:
            self._check("wait", *ticket[:2])
            raise EvictedError(ticket.queue_id, ticket.item_id)
        if not isinstance(passage, Waiter):
            return Grant(passage.token)
        return await until_granted(passage.future, timeout)

    def leave(self, ticket: Ticket, context: str = "", keep_place: float = 0.0) -> LeaveResult:
        line = self._lines.get(ticket.queue_id)
        if line is None:
            return _HAD_NOTHING
        passage = line.holding.pop(ticket.id, None)
        if passage is None:
            waiter = line.waiting.get(ticket.id)
            if waiter is None:
                return _HAD_NOTHING
            line.remove(waiter)
            if keep_place:
                self._keep_place(waiter, keep_place)
            result = _WAS_WAITING  # it had no slot, so none is free now, by the invariant
        else:
            if keep_place and isinstance(passage, Waiter):  # granted while it was being cancelled
                self._keep_place(passage, keep_place)
            else:
                line.holds.add(self._clock() - passage.since)
            result = _WAS_HOLDING
            if line.waiting and len(line.holding) < line.effective_limit:
                leaver = new_tuple(CallRef, (ticket.item_id, self.instance_id, context))
                return new_tuple(LeaveResult, ("holding", (self._grant_head(line, leaver),)))
        if not line.holding and not line.waiting:
            del self._lines[ticket.queue_id]
        return result

    async def flush(self) -> None:
        """Every `leave` has been carried out when it returns."""

    def lapsed(self, ticket: Ticket) -> bool:
        # Nothing lapses without a lease; but an eviction, or closing, takes the slot.
        line = self._lines.get(ticket.queue_id)
        return line is None or ticket.id not in line.holding

    async def set_limit(self, queue_id: str, limit: int | None) -> None:
        self._check("set_limit", queue_id)
        if limit is None:
            self._overrides.pop(queue_id, None)
        else:
            self._overrides[queue_id] = limit
        line = self._lines.get(queue_id)
        if line is not None:
            line.set_limit(line.limit, limit)
            self._hand_over(line)

    async def stats(self, queue_id: str) -> QueueStats:
        self._check("stats", queue_id)
        line = self._lines.get(queue_id)
        if line is None:
            idle, limit = self._known.get(queue_id), self._overrides.get(queue_id, 1)
            mean = None if idle is None else idle.holds.value
            return QueueStats(0, 0, limit, 0.0, 0.0, mean)
        return line.stats(self._clock())

    async def wait_status(
        self, queue_id: str, wanted: Sequence[Ticket | str]
    ) -> list[WaitStatus | None]:
        self._check("wait_status", queue_id)
        line = self._lines.get(queue_id)
        if line is None:
            return [None] * len(wanted)
        names = {item for item in wanted if isinstance(item, str)}
        first = line.first_of(names) if names else {}
        depth, limit, mean, now = (
            len(line.waiting),
            line.effective_limit,
            line.holds.value,
            self._clock(),
        )
        found: list[WaitStatus | None] = []
        for item in wanted:
            waiter = first.get(item) if isinstance(item, str) else line.waiting.get(item.id)
            if waiter is None:
                found.append(None)
                continue
            position = line.position(waiter)
            expected = expected_wait(position, limit, mean)
            found.append(WaitStatus(position, depth, now - waiter.since, expected))
        return found

    async def entries(self, queue_id: str) -> list[QueueEntry]:
        self._check("entries", queue_id)
        line = self._lines.get(queue_id)
        if line is None:
            return []
        now = self._clock()
        holders = [self._describe(passage, now, None) for passage in line.holding.values()]
        return holders + [self._describe(p, now, n) for n, p in enumerate(line.order, 1)]

    async def evict(self, queue_id: str, item_id: str) -> int:
        self._check("evict", queue_id)
        line = self._lines.get(queue_id)
        if line is None:
            return 0
        waiters = [p for p in line.waiting.values() if p.ticket.item_id == item_id]
        holders = [p for p in line.holding.values() if p.ticket.item_id == item_id]
        for waiter in waiters:
            line.remove(waiter)
            fail(waiter.future, EvictedError(queue_id, item_id))
        for holder in holders:
            del line.holding[holder.ticket.id]
        self._hand_over(line)
        if not line.holding and not line.waiting:
            del self._lines[queue_id]
        for holder in holders:  # last: what the listener does is not known here
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

    def _refusal(
        self, line: Line, ticket: Ticket, only_if_free: bool, max_waiting: int | None
    ) -> EnterResult | None:
        """The reply to a call that is turned away, before it takes anything; None if it is not."""
        depth = len(line.waiting)
        if only_if_free:
            refused = EnterResult(ticket, None, 0, depth, "busy")
        elif max_waiting is not None and depth >= max_waiting:
            expected = expected_wait(depth + 1, line.effective_limit, line.holds.value)
            refused = EnterResult(ticket, None, 0, depth, "full", expected)
        else:
            return None
        if not line.holding and not line.waiting:
            del self._lines[ticket.queue_id]
        return refused

    def _take_place(self, request: EnterRequest) -> _KeptPlace | None:
        """The kept place that the request names, once."""
        token = decode(request.place_token)
        kept = self._kept.get(token.kept_id)
        if kept is None or (kept.queue_id, kept.place) != (request.queue_id, token.place):
            return None
        del self._kept[token.kept_id]
        return kept if kept.until > self._clock() else None

    def _keep_place(self, waiter: Waiter, seconds: float) -> None:
        until = self._clock() + seconds
        kept = _KeptPlace(waiter.ticket.queue_id, waiter.place, waiter.number, until)
        self._kept[waiter.ticket.id] = kept

    def _open_line(self, queue_id: str, limit: int | None) -> Line:
        line = self._known.get(queue_id)
        if line is None:
            if len(self._known) >= _MOST_KNOWN:
                del self._known[next(iter(self._known))]
            line = self._known[queue_id] = Line()
        self._lines[queue_id] = line
        override = self._overrides.get(queue_id)
        if limit != line.limit or override != line.override:
            line.set_limit(limit, override)
        if self._timer is None:
            self._arm()
        return line

    def _adopt_limit(self, queue_id: str, line: Line, limit: int) -> None:
        previous = line.limit
        line.set_limit(limit, line.override)
        # Before the newcomer is looked at: a raised limit belongs to those who already wait.
        self._hand_over(line)
        if previous is not None:
            self._emit(LimitDisagreement(queue_id, previous, limit))

    def _hand_over(self, line: Line) -> None:
        """Grant the free slots to the heads of the line, in order."""
        while line.waiting and len(line.holding) < line.effective_limit:
            self._grant_head(line, None)

    def _grant_head(self, line: Line, released_by: CallRef | None) -> CallRef:
        """Grant a free slot to the head of the line; returns who that is."""
        head = line.order.popleft()
        _, item_id, key = head.ticket
        del line.waiting[key]
        line.holding[key] = head
        head.token = token = next(self._numbers)
        head.since = self._clock()
        if not head.future.done():
            head.future.set_result(new_tuple(Grant, (token, released_by, 0.0)))
        return new_tuple(CallRef, (item_id, self.instance_id, head.context))

    def _first_holders(self, line: Line) -> tuple[CallRef, ...]:
        first = islice(line.holding.values(), _HOLDERS_SHOWN)
        return tuple(CallRef(p.ticket.item_id, self.instance_id, p.context) for p in first)

    def _describe(self, passage: Passage, now: float, position: int | None) -> QueueEntry:
        return QueueEntry(
            item_id=passage.ticket.item_id,
            instance_id=self.instance_id,
            state="holding" if position is None else "waiting",
            age=now - passage.since,
            position=position,
            fencing_token=passage.token if position is None else None,
        )

    def _report(self) -> None:
        """Report every line in use, as a shared backend does with its heartbeat."""
        self._timer = None
        now = self._clock()
        for kept_id in [k for k, kept in self._kept.items() if kept.until <= now]:
            del self._kept[kept_id]
        for queue_id, line in self._lines.items():
            self._emit(Snapshot(queue_id, line.stats(now)))
        if self._lines or self._kept:
            self._arm()

    def _arm(self) -> None:
        # In no context: that of the call which came first would live for as long as a line is in use,
        # and with it whatever its application keeps there; its task, for one, never to be collected.
        assert self._loop is not None
        self._timer = self._loop.call_later(self.heartbeat_interval, self._report, context=Context())

    def _emit(self, event: BackendEvent) -> None:
        if self._listener is not None:
            self._listener(event)

    def _move_to(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve another event loop from now on, unless the present one has calls here.

        The calls of a loop that was closed can never leave, so they are dropped with it.
        """
        if self._loop is not None and self._lines and not self._loop.is_closed():
            raise RuntimeError(
                "this InMemoryBackend has calls in another event loop; use a Queue in one event loop "
                "at a time, or RedisBackend to share a line between threads"
            )
        if self._lines:
            self._lines.clear()
            self._known.clear()
        self._loop, self._timer = loop, None

    def _check(self, operation: str, queue_id: str = "", item_id: str = "") -> None:
        if self._closed:
            raise self._closed_error(operation, queue_id, item_id)
        loop = get_running_loop()
        if loop is not self._loop:
            self._move_to(loop)

    def _closed_error(self, operation: str, queue_id: str, item_id: str) -> BackendUnavailableError:
        closed = BackendUnavailableError.CLOSED
        return BackendUnavailableError(self.name, operation, closed, queue_id, item_id)
