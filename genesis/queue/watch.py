"""`Watch`: where a waiter stands, from time to time; and the tickers that ask for all watchers."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import TYPE_CHECKING

from genesis.backends.protocol import Ticket, WaitStatus
from genesis.exceptions import BackendUnavailableError

if TYPE_CHECKING:
    from genesis.queue.queue import Queue
    from genesis.queue.request import SlotRequest

__all__ = ["Watch", "Watches"]

MOST_ITEMS = 500
"""Asked for with one command."""

SHORTEST_TICK = 0.05
"""Seconds."""

EARLIEST = 0.002
"""Seconds by which a timer may come before its time."""

GROWTH_SHOWN = 1.1
"""An expected wait is not shown to grow by less than this factor: each hold moves the mean a little."""


class Watch:
    """An async iterator of `WaitStatus`. It may be dropped at any time; nothing has to be closed."""

    __slots__ = (
        "_ended",
        "_every",
        "_future",
        "_last",
        "_last_at",
        "_least",
        "_request",
        "_watches",
        "item_id",
        "queue_id",
    )

    def __init__(
        self,
        watches: Watches,
        queue_id: str,
        item_id: str,
        every: float,
        at_least: float,
        request: SlotRequest | None = None,
    ) -> None:
        self._watches = watches
        self.queue_id = queue_id
        self.item_id = item_id
        self._every = every
        self._least = min(at_least, every)
        self._request = request
        self._last: WaitStatus | None = None
        self._last_at = 0.0
        self._future: asyncio.Future[WaitStatus | None] | None = None  # while somebody waits for it
        self._ended = False

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> WaitStatus:
        if self._future is not None:
            raise RuntimeError("this watch is already being waited for; call watch() for each reader")
        if self._ended:
            raise StopAsyncIteration
        self._future = asyncio.get_running_loop().create_future()
        try:
            self._watches.add(self)
            status = await self._future
        finally:
            self._future = None
            self._watches.discard(self)
        if status is None:
            raise StopAsyncIteration
        return status

    @property
    def tick(self) -> float:
        return max(self._least, SHORTEST_TICK)

    @property
    def is_new(self) -> bool:
        return self._last is None

    @property
    def wanted(self) -> Ticket | str | None:
        """What to ask for; None if the call has not got its place yet."""
        return self.item_id if self._request is None else self._request.ticket

    def end(self) -> None:
        self._ended = True
        self._resolve(None)

    def fail(self, error: BaseException) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_exception(error)

    def take_in(self, status: WaitStatus | None, now: float) -> None:
        """A status that was asked for at `now`."""
        last = self._last
        if status is None:
            if last is not None:
                self.end()
            return  # not there yet; a request ends its own watches
        if last is not None:
            status = status._replace(expected_wait=_steady(last, status))
            passed = now - self._last_at + EARLIEST
            changed = status.position != last.position and passed >= self._least
            if not changed and passed < self._every:
                return
        if self._resolve(status):
            self._last, self._last_at = status, now

    def _resolve(self, status: WaitStatus | None) -> bool:
        future = self._future
        if future is None or future.done():
            return False
        future.set_result(status)
        return True


def _steady(last: WaitStatus, status: WaitStatus) -> float | None:
    """The expected wait without the small steps up that every hold makes."""
    before, expected = last.expected_wait, status.expected_wait
    if before is None or expected is None or not before < expected < before * GROWTH_SHOWN:
        return expected
    return before if status.position <= last.position else expected


class _Ticker:
    """Asks for the statuses of all that are watched in one queue, at a common time.

    A look is a task of its own, and the ticks are timers: cancelling all tasks ends one look only.
    """

    __slots__ = (
        "_absent",
        "_fresh",
        "_looks",
        "_loop",
        "_pause",
        "_queue",
        "_queue_id",
        "_timer",
        "_watching",
    )

    def __init__(self, queue: Queue, queue_id: str, loop: asyncio.AbstractEventLoop) -> None:
        self._queue = queue
        self._queue_id = queue_id
        self._loop = loop
        self._watching: dict[Watch, None] = {}
        self._fresh: set[Watch] = set()  # to be asked for in the next turn
        self._absent: dict[str, set[Watch]] = {}  # by item_id: it has not been seen in the line
        self._looks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._pause = 0.0  # seconds between its ticks

    @property
    def serves(self) -> asyncio.AbstractEventLoop | None:
        """The loop in which it runs; None once it has stopped."""
        return None if self._timer is None else self._loop

    def add(self, watch: Watch) -> None:
        self._watching[watch] = None
        if watch.is_new:
            self._absent.setdefault(watch.item_id, set()).add(watch)
            self._look_soon(watch)
        if self._timer is None:
            self._arm(watch.tick)
        elif watch.tick < self._pause:  # it must not wait for the tick of those who are less eager
            self._timer.cancel()
            self._arm(watch.tick)

    def discard(self, watch: Watch) -> None:
        # The timer goes on until its next tick: most watchers are back by then.
        self._watching.pop(watch, None)
        absent = self._absent.get(watch.item_id)
        if absent is not None:
            absent.discard(watch)
            if not absent:
                del self._absent[watch.item_id]

    def entered(self, item_id: str) -> None:
        for watch in self._absent.get(item_id, ()):
            self._look_soon(watch)

    def end(self) -> None:
        for watch in list(self._watching):
            watch.end()

    def _look_soon(self, watch: Watch) -> None:
        if not self._fresh:
            # From now on, not from the look on: the first tick must find that its time has come.
            now = self._loop.time()
            self._loop.call_soon(self._look_at_fresh, now, context=Context())
        self._fresh.add(watch)

    def _look_at_fresh(self, now: float) -> None:
        watches = [watch for watch in self._watching if watch in self._fresh]
        self._fresh.clear()
        self._look(watches, now)

    def _arm(self, pause: float) -> None:
        self._pause = pause
        self._timer = self._loop.call_later(pause, self._tick, context=Context())

    def _tick(self) -> None:
        self._timer = None
        if self._watching:
            if not self._looks:  # else the backend has not replied to the one before
                self._look(list(self._watching), self._loop.time())
            self._arm(min(watch.tick for watch in self._watching))

    def _look(self, watches: list[Watch], now: float) -> None:
        watches = [watch for watch in watches if watch.wanted is not None]
        if watches:
            task = self._loop.create_task(self._ask(watches, now))
            self._looks.add(task)
            task.add_done_callback(self._looks.discard)

    async def _ask(self, watches: list[Watch], now: float) -> None:
        for start in range(0, len(watches), MOST_ITEMS):
            pairs = [(watch, watch.wanted) for watch in watches[start : start + MOST_ITEMS]]
            asked = [(watch, wanted) for watch, wanted in pairs if wanted is not None]
            try:
                statuses = await self._queue._backend.wait_status(self._queue_id, [w for _, w in asked])
            except BackendUnavailableError:
                return  # quiet while it is away; the next tick asks again
            except Exception as error:
                for watch, _ in asked:
                    watch.fail(error)
                continue
            for (watch, _), status in zip(asked, statuses, strict=True):
                watch.take_in(status, now)


class Watches:
    """The tickers of a `Queue`, one for each queue in which something is watched."""

    __slots__ = ("_closed", "_queue", "_tickers")

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._tickers: dict[str, _Ticker] = {}
        self._closed = False

    def add(self, watch: Watch) -> None:
        """Somebody waits for the next status of `watch`."""
        if self._closed:
            watch.end()
            return
        loop = asyncio.get_running_loop()
        ticker = self._tickers.get(watch.queue_id)
        if ticker is None or ticker.serves is not loop:
            for queue_id in [q for q, other in self._tickers.items() if other.serves is not loop]:
                del self._tickers[queue_id]
            ticker = self._tickers[watch.queue_id] = _Ticker(self._queue, watch.queue_id, loop)
        ticker.add(watch)

    def discard(self, watch: Watch) -> None:
        """Nobody waits for it any more."""
        ticker = self._tickers.get(watch.queue_id)
        if ticker is not None:
            ticker.discard(watch)

    def entered(self, queue_id: str, item_id: str) -> None:
        """A call of this `Queue` begins to wait: the watches of its id look at once."""
        ticker = self._tickers.get(queue_id)
        if ticker is not None:
            ticker.entered(item_id)

    def close(self) -> None:
        """End all watches, and those that are still to come."""
        self._closed = True
        for ticker in self._tickers.values():
            ticker.end()
