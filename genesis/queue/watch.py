"""`Watch`: an iterator of a waiter's status; and the tickers, which poll for all watches of a queue."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING

from genesis.backends.protocol import Ticket, WaitStatus
from genesis.exceptions import BackendUnavailableError
from genesis.queue.arguments import check_seconds

if TYPE_CHECKING:
    from genesis.queue.queue import Queue
    from genesis.queue.request import SlotRequest

MAX_ITEMS = 500
"""Per command."""

MIN_TICK, MAX_TICK = 0.05, 3600.0
"""Seconds. A ticker without a timer would stay for ever, so even an infinite `every` has a tick."""

TIMER_SLACK = 0.002
"""Seconds by which a timer might fire early."""

MIN_GROWTH = 1.1
"""Smaller growth of the expected wait is hidden, because every hold changes the mean a little."""


class Watch:
    """An async iterator of `WaitStatus`. It can be dropped at any time and need not be closed."""

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
        self._every = check_seconds(f"queue {queue_id!r}: every", every, math.inf)
        if self._every == 0:
            raise ValueError(f"queue {queue_id!r}: every must be more than 0 seconds")
        self._least = min(check_seconds(f"queue {queue_id!r}: at_least", at_least, math.inf), every)
        self.tick = min(max(self._least, MIN_TICK), MAX_TICK)
        self._request = request
        self._last: WaitStatus | None = None
        self._last_at = 0.0
        # During `__anext__`: the status and when it was requested, or None at the end.
        self._future: asyncio.Future[tuple[WaitStatus, float] | None] | None = None
        self._ended = False
        self.granted_at = math.inf  # a slot, before this watch saw a call of the item wait

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> WaitStatus:
        if self._future is not None:
            raise RuntimeError("this watch is already being waited for; call watch() for each reader")
        if self._ended or self._watches.closed:
            raise StopAsyncIteration
        ticker = self._watches.ticker(self.queue_id)
        self._future = asyncio.get_running_loop().create_future()
        try:
            ticker.add(self)
            answer = await self._future
        finally:
            self._future = None
            ticker.discard(self)
        if answer is None:
            raise StopAsyncIteration
        self._last, self._last_at = answer  # not before: the reader might have been cancelled
        return answer[0]

    @property
    def is_new(self) -> bool:
        return self._last is None

    @property
    def by_id(self) -> bool:
        return self._request is None

    @property
    def wanted(self) -> Ticket | str | None:
        """The ticket or item_id to poll; None if nobody reads, or if the request has no ticket yet."""
        if self._future is None:
            return None
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
            if last is not None or now >= self.granted_at:
                self.end()
            return  # not entered yet; a request ends its own watches
        if last is not None:
            status = status._replace(expected_wait=_steady(last, status))
            passed = now - self._last_at + TIMER_SLACK
            changed = status.position != last.position and passed >= self._least
            if not changed and passed < self._every:
                return
        self._resolve((status, now))

    def _resolve(self, answer: tuple[WaitStatus, float] | None) -> None:
        if self._future is not None and not self._future.done():
            with suppress(RuntimeError):  # the loop is closed, so nobody reads any more
                self._future.set_result(answer)


def _steady(last: WaitStatus, status: WaitStatus) -> float | None:
    """The expected wait without growth of less than `MIN_GROWTH`."""
    before, expected = last.expected_wait, status.expected_wait
    if before is None or expected is None or not before < expected < before * MIN_GROWTH:
        return expected
    return before if status.position <= last.position else expected


class _Ticker:
    """Polls the statuses of all watches of one queue at once.

    Ticks are timers, and each poll is a task of its own. If the application cancels all tasks, only the
    current poll is lost. A tick that finds nothing to watch is the last.
    """

    def __init__(self, queue: Queue, queue_id: str, tickers: dict[str, _Ticker]) -> None:
        self._queue = queue
        self._queue_id = queue_id
        self._tickers = tickers  # contains this one, until its last tick
        self._loop = asyncio.get_running_loop()
        self._watching: dict[str, dict[Watch, None]] = {}  # by item_id
        self._fresh: dict[Watch, None] = {}  # to be polled in the next iteration of the loop
        self._polls: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._interval = float("inf")  # seconds between ticks

    def add(self, watch: Watch) -> None:
        self._watching.setdefault(watch.item_id, {})[watch] = None
        if watch.is_new:
            self._poll_soon(watch)
        if watch.tick < self._interval:  # the next tick would be too late for this watch
            self._arm(watch.tick)

    def discard(self, watch: Watch) -> None:
        # Keep the timer: most watches are added again before the next tick.
        del self._watching[watch.item_id][watch]
        if not self._watching[watch.item_id]:
            del self._watching[watch.item_id]

    def entered(self, item_id: str) -> None:
        for watch in self._watching.get(item_id, ()):
            if watch.is_new:
                self._poll_soon(watch)

    def granted(self, item_id: str) -> None:
        for watch in self._watching.get(item_id, ()):
            if watch.is_new and watch.by_id:
                # Another call of the id might wait. The time is later than that of any poll before.
                watch.granted_at = now = self._loop.time() + TIMER_SLACK
                self._loop.call_soon(self._start_poll, [watch], now, context=Context())

    def watching(self) -> list[Watch]:
        return [watch for watches in self._watching.values() for watch in watches]

    def _poll_soon(self, watch: Watch) -> None:
        if not self._fresh:
            # Pass on the current time: the first tick must find that `at_least` seconds have passed.
            self._loop.call_soon(self._poll_fresh, self._loop.time(), context=Context())
        self._fresh[watch] = None

    def _poll_fresh(self, now: float) -> None:
        watches, self._fresh = [*self._fresh], {}
        self._start_poll(watches, now)

    def _arm(self, interval: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._interval = interval
        self._timer = self._loop.call_later(interval, self._tick, context=Context())

    def _tick(self) -> None:
        watches = self.watching()
        if not watches:
            del self._tickers[self._queue_id]
            return
        if not self._polls:  # otherwise the backend has not replied to the previous poll
            self._start_poll(watches, self._loop.time())
        self._arm(min(watch.tick for watch in watches))

    def _start_poll(self, watches: list[Watch], now: float) -> None:
        pairs = [(watch, wanted) for watch in watches if (wanted := watch.wanted) is not None]
        if pairs:
            task = self._loop.create_task(self._poll(pairs, now))
            self._polls.add(task)
            task.add_done_callback(self._polls.discard)

    async def _poll(self, pairs: list[tuple[Watch, Ticket | str]], now: float) -> None:
        for start in range(0, len(pairs), MAX_ITEMS):
            watches, wanted = zip(*pairs[start : start + MAX_ITEMS], strict=True)
            try:
                statuses = await self._queue._backend.wait_status(self._queue_id, wanted)
            except BackendUnavailableError:
                return  # yield nothing during an outage; the next tick retries
            except Exception as error:
                for watch in watches:
                    watch.fail(error)
                continue
            for watch, status in zip(watches, statuses, strict=True):
                watch.update(status, now)


class Watches:
    """The tickers of a `Queue`, one for each queue in which something is watched."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._loop: asyncio.AbstractEventLoop | None = None  # of the tickers, perhaps closed
        self.tickers: dict[str, _Ticker] = {}
        self.closed = False

    def ticker(self, queue_id: str) -> _Ticker:
        """The ticker of a queue in the running loop. Add a watch to it at once."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self.tickers = loop, {}
        ticker = self.tickers.get(queue_id)
        if ticker is None:
            ticker = self.tickers[queue_id] = _Ticker(self._queue, queue_id, self.tickers)
        return ticker

    def entered(self, queue_id: str, item_id: str) -> None:
        """A call of this `Queue` starts to wait: poll for the watches of its id at once."""
        ticker = self.tickers.get(queue_id)
        if ticker is not None and self._loop is asyncio.get_running_loop():
            ticker.entered(item_id)

    def granted(self, queue_id: str, item_id: str) -> None:
        """A call of this `Queue` holds a slot: a watch of its id that saw no wait might end."""
        ticker = self.tickers.get(queue_id)
        if ticker is not None and self._loop is asyncio.get_running_loop():
            ticker.granted(item_id)

    def close(self) -> None:
        """End all watches, including those created later."""
        self.closed = True
        for ticker in self.tickers.values():
            for watch in ticker.watching():
                watch.end()
