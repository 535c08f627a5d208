"""`Watch`: an iterator of a waiter's status; and the tickers, which poll for all watches of a queue."""

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

MAX_ITEMS = 500
"""Per command."""

MIN_TICK = 0.05
"""Seconds."""

TIMER_SLACK = 0.002
"""Seconds by which a timer might fire early."""

MIN_GROWTH = 1.1
"""Smaller growth of the expected wait is hidden, because every hold changes the mean a little."""


class Watch:
    """An async iterator of `WaitStatus`. It can be dropped at any time and need not be closed."""

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
        self._future: asyncio.Future[WaitStatus | None] | None = None  # during `__anext__`
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
        return max(self._least, MIN_TICK)

    @property
    def is_new(self) -> bool:
        return self._last is None

    @property
    def wanted(self) -> Ticket | str | None:
        """The ticket or item_id to poll; None if the request has no ticket yet."""
        return self.item_id if self._request is None else self._request.ticket

    def end(self) -> None:
        self._ended = True
        self._resolve(None)

    def fail(self, error: BaseException) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_exception(error)

    def update(self, status: WaitStatus | None, now: float) -> None:
        """Yield a status, requested at `now`, if it is due; None: the item does not wait."""
        last = self._last
        if status is None:
            if last is not None:
                self.end()
            return  # not entered yet; a request ends its own watches
        if last is not None:
            status = status._replace(expected_wait=_steady(last, status))
            passed = now - self._last_at + TIMER_SLACK
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
    """The expected wait without growth of less than `MIN_GROWTH`."""
    before, expected = last.expected_wait, status.expected_wait
    if before is None or expected is None or not before < expected < before * MIN_GROWTH:
        return expected
    return before if status.position <= last.position else expected


class _Ticker:
    """Polls the statuses of all watches of one queue at once.

    Ticks are timers, and each poll is a task of its own. If the application cancels all tasks, only the
    current poll is lost.
    """

    __slots__ = (
        "_absent",
        "_fresh",
        "_interval",
        "_loop",
        "_polls",
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
        self._fresh: set[Watch] = set()  # to be polled in the next iteration of the loop
        self._absent: dict[str, set[Watch]] = {}  # by item_id: no status yielded yet
        self._polls: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._interval = 0.0  # seconds between ticks

    @property
    def serves(self) -> asyncio.AbstractEventLoop | None:
        """The loop in which it runs; None once it has stopped."""
        return None if self._timer is None else self._loop

    def add(self, watch: Watch) -> None:
        self._watching[watch] = None
        if watch.is_new:
            self._absent.setdefault(watch.item_id, set()).add(watch)
            self._poll_soon(watch)
        if self._timer is None:
            self._arm(watch.tick)
        elif watch.tick < self._interval:  # the next tick would be too late for this watch
            self._timer.cancel()
            self._arm(watch.tick)

    def discard(self, watch: Watch) -> None:
        # Keep the timer: most watches are added again before the next tick.
        self._watching.pop(watch, None)
        absent = self._absent.get(watch.item_id)
        if absent is not None:
            absent.discard(watch)
            if not absent:
                del self._absent[watch.item_id]

    def entered(self, item_id: str) -> None:
        for watch in self._absent.get(item_id, ()):
            self._poll_soon(watch)

    def end(self) -> None:
        for watch in list(self._watching):
            watch.end()

    def _poll_soon(self, watch: Watch) -> None:
        if not self._fresh:
            # Pass on the current time: the first tick must find that `at_least` seconds have passed.
            now = self._loop.time()
            self._loop.call_soon(self._poll_fresh, now, context=Context())
        self._fresh.add(watch)

    def _poll_fresh(self, now: float) -> None:
        watches = [watch for watch in self._watching if watch in self._fresh]
        self._fresh.clear()
        self._start_poll(watches, now)

    def _arm(self, interval: float) -> None:
        self._interval = interval
        self._timer = self._loop.call_later(interval, self._tick, context=Context())

    def _tick(self) -> None:
        self._timer = None
        if self._watching:
            if not self._polls:  # otherwise the backend has not replied to the previous poll
                self._start_poll(list(self._watching), self._loop.time())
            self._arm(min(watch.tick for watch in self._watching))

    def _start_poll(self, watches: list[Watch], now: float) -> None:
        watches = [watch for watch in watches if watch.wanted is not None]
        if watches:
            task = self._loop.create_task(self._poll(watches, now))
            self._polls.add(task)
            task.add_done_callback(self._polls.discard)

    async def _poll(self, watches: list[Watch], now: float) -> None:
        for start in range(0, len(watches), MAX_ITEMS):
            pairs = [(watch, watch.wanted) for watch in watches[start : start + MAX_ITEMS]]
            asked = [(watch, wanted) for watch, wanted in pairs if wanted is not None]
            try:
                statuses = await self._queue._backend.wait_status(self._queue_id, [w for _, w in asked])
            except BackendUnavailableError:
                return  # yield nothing during an outage; the next tick retries
            except Exception as error:
                for watch, _ in asked:
                    watch.fail(error)
                continue
            for (watch, _), status in zip(asked, statuses, strict=True):
                watch.update(status, now)


class Watches:
    """The tickers of a `Queue`, one for each queue in which something is watched."""

    __slots__ = ("_closed", "_queue", "_tickers")

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._tickers: dict[str, _Ticker] = {}
        self._closed = False

    def add(self, watch: Watch) -> None:
        """`__anext__` waits for the next status of `watch`."""
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
        """`__anext__` of `watch` has ended."""
        ticker = self._tickers.get(watch.queue_id)
        if ticker is not None:
            ticker.discard(watch)

    def entered(self, queue_id: str, item_id: str) -> None:
        """A call of this `Queue` starts to wait: poll for the watches of its id at once."""
        ticker = self._tickers.get(queue_id)
        if ticker is not None:
            ticker.entered(item_id)

    def close(self) -> None:
        """End all watches, including those created later."""
        self._closed = True
        for ticker in self._tickers.values():
            ticker.end()
