"""The calls of one `Queue` in one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

from genesis.backends.protocol import EnterRequest
from genesis.exceptions import LimitMismatchError

_MAX_PER_TURN = 200  # entries per iteration of the loop while entries are delayed
_MAX_BURST = 250  # net new calls until the next one is delayed


@dataclass(eq=False)
class Calls:
    """Counts the calls per queue, checks that they name one limit, and ends calls closed midway.

    A `Queue` creates a new `Calls` for each event loop it is used in. Calls of a closed loop can never
    leave, so they must not be counted and must not bind later calls to their limit.
    """

    loop: asyncio.AbstractEventLoop
    agreements: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    """By queue_id: the number of calls, and their limit."""
    holding: dict[object, ref[Any]] = field(default_factory=dict)
    """By request: its task, or this object if it had none. A strong reference, even in a local variable
    of a frame, would keep an abandoned task and its slot; an id might be that of a later task."""
    _emptied: asyncio.Future[None] | None = None  # while somebody waits for it
    _budget: int = _MAX_BURST  # calls that can still enter without a delay
    _delayed: deque[asyncio.Future[None]] = field(default_factory=deque)  # entries, in order
    _pumping: bool = False  # entries are delayed, or the last of them has not run yet

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
        if not self._pumping:
            self._budget = _MAX_BURST
        for _ in range(min(_MAX_PER_TURN, len(self._delayed))):
            future = self._delayed.popleft()
            if not future.done():
                future.set_result(None)
        if self._pumping:
            self.loop.call_soon(self._pump, context=Context())

    def enter(self, request: EnterRequest) -> bool:
        """Count a call that enters. Returns True if it must await `delay` first.

        Thousands of tasks that start in one iteration of the loop would block everything else until
        the last of them had entered. A call is therefore delayed whenever there are `_MAX_BURST` more
        than before. If they came slowly, that costs it two iterations of the loop.

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
        self._budget -= 1
        return self._budget < 0 or self._pumping

    def leave(self, queue_id: str) -> None:
        """Count a call that leaves. The last one of a queue also removes the agreed limit."""
        if self._budget < _MAX_BURST:
            self._budget += 1
        calls, agreed = self.agreements[queue_id]
        if calls > 1:
            self.agreements[queue_id] = (calls - 1, agreed)
            return
        del self.agreements[queue_id]
        if self._emptied is not None and not self.agreements:
            emptied, self._emptied = self._emptied, None
            with suppress(RuntimeError):  # the loop is closed, so nobody waits any more
                emptied.set_result(None)

    @property
    def count(self) -> int:
        return sum(calls for calls, _ in self.agreements.values())

    async def until_empty(self) -> None:
        """Wait until the last call has left."""
        if self.agreements:
            self._emptied = self._emptied or self.loop.create_future()
            await asyncio.wait({self._emptied})  # shared by those who wait, so it is never cancelled

    def this_task_holds(self) -> bool:
        task = asyncio.current_task(self.loop)
        return task is not None and any(held() is task for held in self.holding.values())

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        """Run `callback` in the loop; at once if the loop is closed.

        For calls whose generator or coroutine was closed. The garbage collector closes them at any
        allocation, in any thread, perhaps in the middle of another call's atomic step.
        """
        try:
            # An empty context: the current one belongs to the interrupted call.
            self.loop.call_soon_threadsafe(callback, *args, context=Context())
        except RuntimeError:  # the loop is closed, so nothing else runs in it
            with suppress(RuntimeError):  # nor can it wake anybody, or send anything
                callback(*args)


def task_id() -> int:
    try:
        return id(asyncio.current_task())
    except RuntimeError:  # no running loop: the garbage collector closes a task in another thread
        return id(None)
