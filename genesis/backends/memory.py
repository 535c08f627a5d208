"""The line in one process: no server, no lease, the same promises.

Everything here happens between two await points of one event loop (`Queue` sees to it that a call
which the collector closes does not come in between), so each method is atomic by itself and the
invariant needs no lock::

    a line never has a free slot and a waiter at the same time

Every method that frees a slot or adds one restores it: `leave` by one grant, because it frees one
slot at most, all others by `_hand_over`. A waiter that was granted is a holder from that instant, even
if its task is just being cancelled; that task says `leave`, as every task does, and the slot passes
on. So a grant never has to look at the state of the task it is for (anyio and trio decide it the same
way: "already granted? then pass it on").
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import Context

from genesis.backends.identity import new_instance_id
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
    new_tuple,
)
from genesis.backends.waiting import fail, until_granted
from genesis.exceptions import BackendUnavailableError, EvictedError

__all__ = ["InMemoryBackend"]


_WAS_HOLDING, _WAS_WAITING, _HAD_NOTHING = map(LeaveResult, ("holding", "waiting", None))


class _Passage:
    """One ticket in the line: a waiter while `token` is 0, then a holder."""

    __slots__ = ("since", "ticket", "token")

    def __init__(self, ticket: Ticket, since: float, token: int) -> None:
        self.ticket = ticket
        self.since = since  # when it entered; from the grant on, when it was granted
        self.token = token


class _Waiter(_Passage):
    """One that had to wait."""

    __slots__ = ("future", "owner")

    def __init__(self, ticket: Ticket, since: float, owner: CallRef) -> None:
        super().__init__(ticket, since, 0)
        self.owner = owner  # as whoever makes room for it will know it
        self.future: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()


class _Line:
    """One queue in use; dropped as soon as it is empty."""

    __slots__ = ("holding", "limit", "override", "waiting")

    def __init__(self, limit: int | None, override: int | None) -> None:
        self.limit = limit  # the call sites' number that came last
        self.override = override
        # An OrderedDict, because taking the first key of a plain dict again and again is quadratic.
        self.waiting: OrderedDict[str, _Waiter] = OrderedDict()
        self.holding: dict[str, _Passage] = {}

    @property
    def effective_limit(self) -> int:
        if self.override is not None:
            return self.override
        return self.limit or 1


class InMemoryBackend:
    """Keeps queues in this process, for one event loop. Nothing survives it.

    Args:
        clock: monotonic seconds, for ages; injected by tests.
    """

    name = "memory"
    heartbeat_interval = 5.0

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.instance_id = new_instance_id()
        self._clock = clock
        self._listener: Listener | None = None
        self._lines: dict[str, _Line] = {}
        self._overrides: dict[str, int] = {}
        # One counter for all queues: tokens grow strictly in each of them, although an idle queue
        # leaves no state behind from which its own counter could go on.
        self._numbers = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def listen(self, listener: Listener) -> None:
        self._listener = listener

    async def enter(self, entry: EnterRequest) -> EnterResult:
        queue_id = entry.queue_id
        if self._closed:
            raise self._closed_error("enter", queue_id, entry.item_id)
        line = self._lines.get(queue_id)
        if line is None:
            line = self._open_line(queue_id, entry.limit)
        elif entry.limit is not None and entry.limit != line.limit:
            self._adopt_limit(queue_id, line, entry.limit)
        number = next(self._numbers)
        key = str(number)
        ticket = new_tuple(Ticket, (queue_id, entry.item_id, key))
        if not line.waiting and len(line.holding) < line.effective_limit:
            line.holding[key] = _Passage(ticket, self._clock(), number)
            return new_tuple(EnterResult, (ticket, new_tuple(Grant, (number, None, 0.0)), 0, 0))
        if entry.only_if_free:
            depth = len(line.waiting)
            self._drop_if_idle(queue_id, line)
            return EnterResult(ticket, None, 0, depth)
        owner = new_tuple(CallRef, (entry.item_id, self.instance_id, entry.context))
        line.waiting[key] = _Waiter(ticket, self._clock(), owner)
        depth = len(line.waiting)
        return EnterResult(ticket, None, depth, depth)

    async def wait(self, ticket: Ticket, timeout: float | None) -> Grant:
        line = self._lines.get(ticket.queue_id)
        passage = line and (line.waiting.get(ticket.id) or line.holding.get(ticket.id))
        if not passage:
            self._check_open("wait", *ticket[:2])
            raise EvictedError(ticket.queue_id, ticket.item_id)
        if not isinstance(passage, _Waiter):
            return Grant(passage.token)
        return await until_granted(passage.future, timeout)

    async def leave(self, ticket: Ticket, context: str = "") -> LeaveResult:
        line = self._lines.get(ticket.queue_id)
        if line is None:
            return _HAD_NOTHING
        departure = _WAS_HOLDING
        if line.holding.pop(ticket.id, None) is None:
            if line.waiting.pop(ticket.id, None) is None:
                return _HAD_NOTHING
            departure = _WAS_WAITING  # it had no slot, so none is free now, by the invariant
        elif line.waiting and len(line.holding) < line.effective_limit:
            leaver = new_tuple(CallRef, (ticket.item_id, self.instance_id, context))
            return new_tuple(LeaveResult, ("holding", (self._grant_head(line, leaver),)))
        if not line.holding and not line.waiting:
            del self._lines[ticket.queue_id]
        return departure

    def lapsed(self, ticket: Ticket) -> bool:
        # Nothing lapses without a lease; but an eviction, or closing, takes the slot.
        line = self._lines.get(ticket.queue_id)
        return line is None or ticket.id not in line.holding

    async def set_limit(self, queue_id: str, limit: int | None) -> None:
        self._check_open("set_limit", queue_id)
        if limit is None:
            self._overrides.pop(queue_id, None)
        else:
            self._overrides[queue_id] = limit
        line = self._lines.get(queue_id)
        if line is not None:
            line.override = limit
            self._hand_over(line)

    async def stats(self, queue_id: str) -> QueueStats:
        self._check_open("stats", queue_id)
        line = self._lines.get(queue_id)
        if line is None:
            return QueueStats(0, 0, self._overrides.get(queue_id, 1), 0.0)
        return self._stats(line)

    async def position(self, queue_id: str, item_id: str) -> int | None:
        self._check_open("position", queue_id)
        line = self._lines.get(queue_id)
        for place, passage in enumerate(line.waiting.values() if line else (), 1):
            if passage.ticket.item_id == item_id:
                return place
        return None

    async def entries(self, queue_id: str) -> list[QueueEntry]:
        self._check_open("entries", queue_id)
        line = self._lines.get(queue_id)
        if line is None:
            return []
        now = self._clock()
        found = [self._describe(passage, now, None) for passage in line.holding.values()]
        for place, passage in enumerate(line.waiting.values(), 1):
            found.append(self._describe(passage, now, place))
        return found

    async def evict(self, queue_id: str, item_id: str) -> int:
        self._check_open("evict", queue_id)
        line = self._lines.get(queue_id)
        if line is None:
            return 0
        waiters = [p for p in line.waiting.values() if p.ticket.item_id == item_id]
        holders = [p for p in line.holding.values() if p.ticket.item_id == item_id]
        for waiter in waiters:
            del line.waiting[waiter.ticket.id]
            fail(waiter.future, EvictedError(queue_id, item_id))
        for holder in holders:
            del line.holding[holder.ticket.id]
        self._hand_over(line)
        self._drop_if_idle(queue_id, line)
        for holder in holders:  # last: what the listener does is not known here
            self._emit(SlotLost(holder.ticket, "evicted"))
        return len(waiters) + len(holders)

    async def ping(self) -> None:
        self._check_open("ping")

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        lines, self._lines = self._lines, {}
        for line in lines.values():
            for waiter in line.waiting.values():
                fail(waiter.future, self._closed_error("wait", *waiter.ticket[:2]))
            for holder in line.holding.values():
                self._emit(SlotLost(holder.ticket, "closed"))

    def _open_line(self, queue_id: str, limit: int | None) -> _Line:
        line = self._lines[queue_id] = _Line(limit, self._overrides.get(queue_id))
        loop = asyncio.get_running_loop()
        if self._timer is None or self._loop is not loop:
            self._loop = loop
            self._arm(loop)
        return line

    def _drop_if_idle(self, queue_id: str, line: _Line) -> None:
        if not line.holding and not line.waiting:
            self._lines.pop(queue_id, None)

    def _adopt_limit(self, queue_id: str, line: _Line, limit: int) -> None:
        previous, line.limit = line.limit, limit
        # Before the newcomer is looked at: a raised limit belongs to those who already wait.
        self._hand_over(line)
        if previous is not None:
            self._emit(LimitDisagreement(queue_id, previous, limit))

    def _hand_over(self, line: _Line) -> None:
        """Grant the free slots to the heads of the line, in order."""
        while line.waiting and len(line.holding) < line.effective_limit:
            self._grant_head(line, None)

    def _grant_head(self, line: _Line, released_by: CallRef | None) -> CallRef:
        """Grant a free slot to the head of the line; returns who that is."""
        key, head = line.waiting.popitem(last=False)
        line.holding[key] = head
        head.token = token = next(self._numbers)
        head.since = self._clock()
        if not head.future.done():
            head.future.set_result(new_tuple(Grant, (token, released_by, 0.0)))
        return head.owner

    def _stats(self, line: _Line) -> QueueStats:
        oldest = 0.0
        if line.waiting:
            oldest = self._clock() - next(iter(line.waiting.values())).since
        return QueueStats(len(line.waiting), len(line.holding), line.effective_limit, oldest)

    def _describe(self, passage: _Passage, now: float, place: int | None) -> QueueEntry:
        return QueueEntry(
            item_id=passage.ticket.item_id,
            instance_id=self.instance_id,
            state="holding" if place is None else "waiting",
            age=now - passage.since,
            position=place,
            fencing_token=passage.token if place is None else None,
        )

    def _report(self) -> None:
        """Report every line in use, as a shared backend does with its heartbeat."""
        self._timer = None
        for queue_id, line in self._lines.items():
            self._emit(Snapshot(queue_id, self._stats(line)))
        if self._lines:
            assert self._loop is not None
            self._arm(self._loop)

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        # In no context: that of the call which came first would live for as long as a line is in use,
        # and with it whatever its application keeps there; its task, for one, never to be collected.
        interval = self.heartbeat_interval
        self._timer = loop.call_later(interval, self._report, context=Context())

    def _emit(self, event: BackendEvent) -> None:
        if self._listener is not None:
            self._listener(event)

    def _check_open(self, operation: str, queue_id: str = "", item_id: str = "") -> None:
        if self._closed:
            raise self._closed_error(operation, queue_id, item_id)

    def _closed_error(self, operation: str, queue_id: str, item_id: str) -> BackendUnavailableError:
        closed = BackendUnavailableError.CLOSED
        return BackendUnavailableError(self.name, operation, closed, queue_id, item_id)
