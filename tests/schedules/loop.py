"""An event loop in virtual time that runs one callback at a time, on request."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Literal

from tests.schedules.choices import Choices

__all__ = ["Order", "VirtualLoop"]

Order = Literal["fifo", "any"]


class VirtualLoop(asyncio.BaseEventLoop):
    """Real tasks and futures. The explorer decides when a callback runs, and what time it is.

    `now` advances only when a timer fires. A fired timer goes to the end of the ready callbacks, as in
    asyncio. The explorer can fire it between any two callbacks, so it reaches all orders of timers and
    callbacks, including some that never occur in a real loop.
    """

    _made = False

    def __init__(self) -> None:
        super().__init__()
        self._made = True
        self.now = 0.0
        self.ready: deque[asyncio.Handle] = deque()
        self.tasks: list[asyncio.Task[Any]] = []
        self.errors: list[str] = []  # messages that asyncio would have logged
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._serials = itertools.count()

    # -- what asyncio asks of a loop ----------------------------------------------------------------

    def time(self) -> float:
        return self.now

    def is_running(self) -> bool:
        return self._made and not self.is_closed()

    def call_soon(  # type: ignore[override] # wider than typeshed has it
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self.ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._serials), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Do nothing: cancelled timers are dropped when they are due."""

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: object = None, **options: Any
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, **options)
        if name is not None:
            task.set_name(str(name))
        self.tasks.append(task)
        return task

    def close(self) -> None:
        self._made = False
        super().close()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")

    # -- what the explorer does with it -------------------------------------------------------------

    def run_one(self, order: Order, choices: Choices) -> None:
        """Run one ready callback. There must be one."""
        if order == "any" and len(self.ready) > 1:
            self.ready.rotate(-choices.pick(len(self.ready)))
        handle = self.ready.popleft()
        if not handle.cancelled():
            events._set_running_loop(self)
            try:
                handle._run()
            finally:
                events._set_running_loop(None)

    @property
    def next_timer(self) -> float | None:
        """When the next timer is due; None if none is set."""
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        return timers[0][0] if timers else None

    def fire_timer(self) -> None:
        """Advance the time to the next timer, and fire it. There must be one."""
        when = self.next_timer
        assert when is not None
        self.now = max(self.now, when)
        self.ready.append(heapq.heappop(self._timers)[2])

    def unfinished(self) -> list[str]:
        """The tasks that have not ended."""
        return [repr(task) for task in self.tasks if not task.done()]
