"""The calls that a `Queue` has in one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any

from genesis.backends.protocol import EnterRequest
from genesis.exceptions import LimitMismatchError

__all__ = ["Calls", "task_id"]


_MAX_PER_TURN = 200  # calls that enter in one turn of the loop, once there are too many
_MAX_AT_ONCE = 500  # calls by which those in the lines may grow within `_AT_ONCE`, before that
_AT_ONCE = 0.1  # seconds


class Calls:
    """Who is in the lines, which limit their call sites agree on, and how a broken-off call ends.

    A `Queue` that is used in another event loop gets another one of these: the calls of a loop that is
    closed can never leave, and must neither bind the next ones to their limit nor be counted.
    """

    __slots__ = (
        "_at_once",
        "_at_once_until",
        "_gone",
        "_held_up",
        "_pumping",
        "agreements",
        "holding",
        "loop",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.agreements: dict[str, tuple[int, int | None]] = {}  # calls in the queue, and their limit
        # By the id of its task, because a reference to a task that all others have forgotten would keep
        # it, and its slot, for ever.
        self.holding: dict[object, int] = {}
        self._gone: list[asyncio.Future[None]] = []
        self._at_once = 0  # calls that may still come until `_at_once_until`, by `loop.time()`
        self._at_once_until = 0.0
        # Calls that enter in later turns, in order.
        self._held_up: deque[asyncio.Future[None]] = deque()
        self._pumping = False  # while there are such calls, or the last of them has not run yet

    def too_many(self) -> bool:
        """Count an entry; whether so many come at once that it must await `later_turn` first.

        Thousands of tasks that start in one turn of the loop would keep everything else waiting until
        the last of them has entered.
        """
        now = self.loop.time()
        if now >= self._at_once_until:
            self._at_once, self._at_once_until = _MAX_AT_ONCE, now + _AT_ONCE
        self._at_once -= 1
        return self._at_once < 0 or self._pumping

    def later_turn(self) -> asyncio.Future[None]:
        """Done in a later turn of the loop; in the order of the calls. May be cancelled."""
        future: asyncio.Future[None] = self.loop.create_future()
        self._held_up.append(future)
        if not self._pumping:
            self._pumping = True
            self.loop.call_soon(self._pump, context=Context())
        return future

    def _pump(self) -> None:
        # It runs once more after the last one was released: until that one has run, a newcomer that
        # was not held up would overtake it.
        self._pumping = bool(self._held_up)
        for _ in range(min(_MAX_PER_TURN, len(self._held_up))):
            future = self._held_up.popleft()
            if not future.done():
                future.set_result(None)
        if self._pumping:
            self.loop.call_soon(self._pump, context=Context())

    def enter(self, request: EnterRequest) -> None:
        """Count a call in.

        Raises:
            LimitMismatchError: it names another limit than the calls that are there.
        """
        queue_id, limit = request.queue_id, request.limit
        agreement = self.agreements.get(queue_id)
        if agreement is None:
            self.agreements[queue_id] = (1, limit)
            return
        calls, agreed = agreement
        if agreed is None:
            agreed = limit
        elif limit is not None and limit != agreed:
            raise LimitMismatchError(queue_id, request.item_id, agreed, limit)
        self.agreements[queue_id] = (calls + 1, agreed)

    def leave(self, queue_id: str) -> None:
        """Count a call out; with the last one of a queue, its limit is forgotten."""
        self._at_once += 1
        calls, agreed = self.agreements[queue_id]
        if calls > 1:
            self.agreements[queue_id] = (calls - 1, agreed)
            return
        del self.agreements[queue_id]
        if self._gone and not self.agreements:
            for future in self._gone:
                if not future.done():
                    future.set_result(None)
            self._gone.clear()

    @property
    def count(self) -> int:
        return sum(calls for calls, _ in self.agreements.values())

    def all_gone(self) -> asyncio.Future[None]:
        """Done as soon as no call is in any line."""
        future: asyncio.Future[None] = self.loop.create_future()
        if self.agreements:
            self._gone.append(future)
        else:
            future.set_result(None)
        return future

    def this_task_holds(self) -> bool:
        task = task_id()
        return any(held == task for held in self.holding.values())

    def end_later(self, ending: Callable[..., Any], *args: Any) -> None:
        """End a call that its generator or its coroutine was closed under, in a turn of the loop.

        The garbage collector closes them at any allocation, in any thread: in the middle of another
        call's step, which counts on being left alone.
        """
        try:
            # In no context: the current one belongs to the interrupted call.
            self.loop.call_soon_threadsafe(ending, *args, context=Context())
        except RuntimeError:  # the loop is closed, and nothing else is at work in it
            ending(*args)


def task_id() -> int:
    try:
        return id(asyncio.current_task())
    except RuntimeError:  # no loop: the collector closes a task in another thread
        return id(None)
