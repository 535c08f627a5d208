"""The calls of one `Queue` in one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any

from genesis.backends.protocol import EnterRequest
from genesis.exceptions import LimitMismatchError

__all__ = ["Calls", "task_id"]


_MAX_PER_TURN = 200  # entries per iteration of the loop while entries are delayed
_MAX_BURST = 250  # net new calls before the clock is read; twice that can enter in one iteration
_BURST_SECONDS = 0.1


class Calls:
    """Counts the calls per queue, checks that they name one limit, and ends calls closed midway.

    A `Queue` creates a new `Calls` for each event loop it is used in. Calls of a closed loop can never
    leave, so they must not be counted and must not bind later calls to their limit.
    """

    __slots__ = (
        "_burst_left",
        "_burst_until",
        "_delayed",
        "_empty_waiters",
        "_pumping",
        "agreements",
        "holding",
        "loop",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.agreements: dict[str, tuple[int, int | None]] = {}  # queue_id: (calls, their limit)
        # Request: id of its task. A reference to the task itself would keep an abandoned task, and
        # with it the slot, alive for ever.
        self.holding: dict[object, int] = {}
        self._empty_waiters: list[asyncio.Future[None]] = []
        self._burst_left = _MAX_BURST  # net new calls that may enter before `_is_burst` is asked
        self._burst_until = 0.0  # by `loop.time()`: they are a burst if used up before
        self._delayed: deque[asyncio.Future[None]] = deque()  # entries, in order
        self._pumping = False  # entries are delayed, or the last of them has not run yet

    def delay(self) -> asyncio.Future[None]:
        """A future that completes in a later iteration of the loop, in FIFO order. Cancellable."""
        future: asyncio.Future[None] = self.loop.create_future()
        self._delayed.append(future)
        if not self._pumping:
            self._pumping = True
            self.loop.call_soon(self._pump, context=Context())
        return future

    def _pump(self) -> None:
        # Run once more after releasing the last entry. Until that entry has run, a newcomer that was
        # not delayed would overtake it.
        self._pumping = bool(self._delayed)
        for _ in range(min(_MAX_PER_TURN, len(self._delayed))):
            future = self._delayed.popleft()
            if not future.done():
                future.set_result(None)
        if self._pumping:
            self.loop.call_soon(self._pump, context=Context())

    def enter(self, request: EnterRequest) -> bool:
        """Count a call that enters. Returns True if it must await `delay` first.

        Raises:
            LimitMismatchError: the calls in the queue named another limit.
        """
        queue_id, limit = request.queue_id, request.limit
        agreement = self.agreements.get(queue_id)
        if agreement is None:
            self.agreements[queue_id] = (1, limit)
        else:
            calls, agreed = agreement
            if agreed is None:
                agreed = limit
            elif limit is not None and limit != agreed:
                raise LimitMismatchError(queue_id, request.item_id, agreed, limit)
            self.agreements[queue_id] = (calls + 1, agreed)
        self._burst_left -= 1
        return self._pumping or (self._burst_left < 0 and self._is_burst())

    def _is_burst(self) -> bool:
        """Whether the calls that may enter without a delay were used up within `_BURST_SECONDS`.

        Thousands of tasks that start in one iteration of the loop would block everything else until
        the last of them had entered.
        """
        now = self.loop.time()
        if now < self._burst_until:
            return True
        self._burst_left, self._burst_until = _MAX_BURST - 1, now + _BURST_SECONDS
        return False

    def leave(self, queue_id: str) -> None:
        """Count a call that leaves. The last one of a queue also removes the agreed limit."""
        if self._burst_left < _MAX_BURST:
            self._burst_left += 1
        calls, agreed = self.agreements[queue_id]
        if calls > 1:
            self.agreements[queue_id] = (calls - 1, agreed)
            return
        del self.agreements[queue_id]
        if self._empty_waiters and not self.agreements:
            for future in self._empty_waiters:
                if not future.done():
                    future.set_result(None)
            self._empty_waiters.clear()

    @property
    def count(self) -> int:
        return sum(calls for calls, _ in self.agreements.values())

    def when_empty(self) -> asyncio.Future[None]:
        """A future that completes when no call waits or holds a slot."""
        future: asyncio.Future[None] = self.loop.create_future()
        if self.agreements:
            self._empty_waiters.append(future)
        else:
            future.set_result(None)
        return future

    def this_task_holds(self) -> bool:
        task = task_id()
        return any(held == task for held in self.holding.values())

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        """Run `callback` in the loop; at once if the loop is closed.

        For calls whose generator or coroutine was closed. The garbage collector closes them at any
        allocation, in any thread, perhaps in the middle of another call's atomic step.
        """
        try:
            # An empty context: the current one belongs to the interrupted call.
            self.loop.call_soon_threadsafe(callback, *args, context=Context())
        except RuntimeError:  # the loop is closed, so nothing else runs in it
            callback(*args)


def task_id() -> int:
    try:
        return id(asyncio.current_task())
    except RuntimeError:  # no running loop: the garbage collector closes a task in another thread
        return id(None)
