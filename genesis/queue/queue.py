"""`Queue`: the library's face."""

from __future__ import annotations

import asyncio
import uuid
from asyncio import get_running_loop
from types import TracebackType
from typing import Any

from genesis.backends.memory import InMemoryBackend
from genesis.backends.protocol import (
    EnterRequest,
    QueueBackend,
    QueueEntry,
    QueueStats,
    new_tuple,
)
from genesis.exceptions import QueueDrainingError
from genesis.observability.layer import ObservedBackend
from genesis.observability.telemetry import Telemetry
from genesis.queue.arguments import (
    check_id,
    check_limit,
    check_pace,
    check_place_token,
    check_seconds,
    check_timeout,
)
from genesis.queue.calls import Calls
from genesis.queue.request import SlotRequest
from genesis.queue.semaphore import QueueSemaphore
from genesis.queue.watch import Watch, Watches
from genesis.version import VERSION

__all__ = ["Queue"]

_ZERO = 0.0  # one object: most calls leave it out, and then it needs no check
_ONE_REPLY = 1.0
"""Seconds that timeout=0 allows for the backend's reply."""


class Queue:
    """A fair waiting line with a limit on how many hold a slot at once.

    Slots of a queue are granted in the order of places, which is the order of entering less the head
    starts, over all instances that share the backend. Cancelling a task at any point, before, during or
    after its grant, leaks nothing and strands nobody.

    Args:
        backend: where the lines are kept; a new `InMemoryBackend` if None. A backend belongs to one
            Queue, which closes it; a second one is refused with RuntimeError.
        telemetry: where to report to; the process' default registry, tracer provider and logger if
            None. Whatever the backend is, every operation on it is observed.
    """

    def __init__(
        self, backend: QueueBackend | None = None, *, telemetry: Telemetry | None = None
    ) -> None:
        inner = InMemoryBackend() if backend is None else backend
        if isinstance(inner, type) or not hasattr(inner, "listen"):
            raise TypeError(
                f"backend must be a QueueBackend, as InMemoryBackend() or RedisBackend(url=...), "
                f"got {type(inner).__name__}"
            )
        self._backend = ObservedBackend(inner, telemetry or Telemetry(), VERSION)
        self._calls: Calls | None = None  # of the event loop that it was last used in
        self._draining = False
        self.watches = Watches(self)

    @property
    def instance_id(self) -> str:
        """Which instance this is, in entries, spans and log events."""
        return self._backend.instance_id

    def slot(
        self,
        queue_id: str,
        *,
        item_id: str | None = None,
        max_concurrent: int | None = None,
        timeout: float | None = None,
        max_waiting: int | None = None,
        head_start: float = _ZERO,
        keep_place: float = _ZERO,
        place_token: str | None = None,
    ) -> SlotRequest:
        """Wait for a slot on entering the `async with` block, give it back on leaving it.

        Leaving waits for nothing and raises nothing of its own: what cannot be given back now is given
        back when the backend is reached, or when its lease lapses.

        Args:
            queue_id: names the line; any non-empty str.
            item_id: names the call in metrics' exemplars, traces, logs and introspection; a new UUID
                if None. Two waiters may have the same.
            max_concurrent: the queue's limit, at least 1. None takes the limit it has, or 1.
            timeout: a deadline, in seconds from entering `async with`, whatever the backend does. None
                waits as long as it takes; 0 takes a slot only if one is free now, and allows one reply
                of the backend, at most 1 s.
            max_waiting: refuse the call if no slot is free and so many already wait; 0 or more. A call
                that was taken into the line is never refused afterwards.
            head_start: seconds, 0 to 86,400; the call stands where it would had it entered that much
                earlier.
            keep_place: seconds, 0 to 86,400, for which a waiter that is cancelled leaves its place. A
                timeout, a refusal and an eviction keep nothing.
            place_token: `SlotRequest.place_token` of a call that was cancelled; take its place if it is
                still kept, else the end of the line. A call that raises before it waits, or holds, does
                not use the token up.

        Raises:
            TypeError, ValueError: at once, for a bad argument or a token of another queue.
            LimitMismatchError: on entering; this Queue has calls in that queue with another limit.
            QueueTimeoutError: on entering; it was in the line and got no slot in time, or timeout=0 and
                no slot was free.
            QueueFullError: on entering; `max_waiting` calls wait.
            QueueDrainingError: on entering; `drain` was called, and this task holds no slot.
            EvictedError: on entering; somebody evicted the waiter.
            BackendUnavailableError: on entering; the backend did not take it into the line in time, or
                was closed.
        """
        queue_id = check_id("queue_id", queue_id)
        item_id = str(uuid.uuid4()) if item_id is None else check_id("item_id", item_id)
        if max_concurrent is not None:
            check_limit("max_concurrent", queue_id, max_concurrent, least=1)
        if timeout is not None:
            timeout = check_timeout(f"queue {queue_id!r}: timeout", timeout)
        if max_waiting is not None:
            check_limit("max_waiting", queue_id, max_waiting, least=0)
        if head_start is not _ZERO:
            head_start = check_seconds(f"queue {queue_id!r}: head_start", head_start)
        if keep_place is not _ZERO:
            keep_place = check_seconds(f"queue {queue_id!r}: keep_place", keep_place)
        token = "" if place_token is None else check_place_token(queue_id, place_token)
        now = timeout is not None and timeout == 0
        request = new_tuple(
            EnterRequest,
            (
                queue_id,
                item_id,
                max_concurrent,
                now,
                "",
                max_waiting,
                head_start,
                token,
                _ONE_REPLY if now else timeout,
            ),
        )
        return SlotRequest(self, request, timeout, keep_place)

    def semaphore(
        self,
        queue_id: str,
        max_concurrent: int | None = None,
        timeout: float | None = None,
        *,
        max_waiting: int | None = None,
        head_start: float = 0.0,
        keep_place: float = 0.0,
    ) -> QueueSemaphore:
        """A reusable handle on a queue, for any number of tasks at once.

        Args and raises: as `slot`. `item_id` and `place_token` are given to a call of the handle:
        `async with semaphore(item_id=...) as slot`.
        """
        queue_id = check_id("queue_id", queue_id)
        options: dict[str, Any] = {
            "max_concurrent": max_concurrent,
            "timeout": timeout,
            "max_waiting": max_waiting,
            "head_start": head_start,
            "keep_place": keep_place,
        }
        self.slot(queue_id, item_id="any", **options)  # raises now what it would raise later
        return QueueSemaphore(self, queue_id, options)

    def watch(
        self, queue_id: str, item_id: str, *, every: float = 30.0, at_least: float = 10.0
    ) -> Watch:
        """Where an item stands in the line, as an async iterator of `WaitStatus`.

        The first comes at once. If the item does not wait yet, it comes when the item has entered: at
        once through this Queue, within `at_least` seconds through another. Then one comes when the
        position has changed, and otherwise after `every` seconds, rounded up to whole ticks. Of several
        waiters with one id the first is meant. Ends when the item is granted or gone, which is seen
        within `at_least` seconds, and when the Queue is closed. Quiet while the backend is away.

        An instance sends one command per queue, tick and 500 items watched; the tick of a queue is the
        least `at_least` of its watchers. A watch that nobody iterates costs nothing, and needs no
        closing.

        `WaitStatus.expected_wait` is seconds, None while fewer than ten holds are known or the queue is
        paused. It grows only with new evidence: longer holds, a lower limit, a head start before it.

        Args:
            queue_id: the queue's.
            item_id: the item's, on any instance.
            every: seconds, more than 0.
            at_least: seconds between two statuses; `every` if that is less.
        """
        queue_id, item_id = check_id("queue_id", queue_id), check_id("item_id", item_id)
        every, at_least = check_pace(queue_id, every, at_least)
        return Watch(self.watches, queue_id, item_id, every, at_least)

    async def set_limit(self, queue_id: str, limit: int | None) -> None:
        """Override the limit of a queue at every call site, live, on all instances.

        Raising it grants slots to waiters at once; lowering it takes effect as holders leave.

        Args:
            queue_id: the queue's.
            limit: 0 pauses the queue; None ends the override.
        """
        queue_id = check_id("queue_id", queue_id)
        check_limit("limit", queue_id, limit, least=0)
        await self._backend.set_limit(queue_id, limit)

    async def stats(self, queue_id: str) -> QueueStats:
        """Counts, limit, longest wait and hold, and the mean of recent holds, over all instances."""
        queue_id = check_id("queue_id", queue_id)
        return await self._backend.stats(queue_id)

    async def position(self, queue_id: str, item_id: str) -> int | None:
        """The item's position in the line: 1 is next, None if it does not wait.

        Of several waiters with this id, the first.
        """
        queue_id = check_id("queue_id", queue_id)
        item_id = check_id("item_id", item_id)
        (status,) = await self._backend.wait_status(queue_id, [item_id])
        return None if status is None else status.position

    async def entries(self, queue_id: str) -> list[QueueEntry]:
        """The holders in the order of their grants, then the waiters in the order of the line."""
        queue_id = check_id("queue_id", queue_id)
        return await self._backend.entries(queue_id)

    async def evict(self, queue_id: str, item_id: str) -> int:
        """Take every ticket of an item out of the queue, on whichever instance it is.

        A waiter gets `EvictedError`; a holder's slot is taken back and its `slot.lost` turns true.

        Returns:
            How many tickets there were; 0 if the item was not in the queue.
        """
        queue_id = check_id("queue_id", queue_id)
        item_id = check_id("item_id", item_id)
        return await self._backend.evict(queue_id, item_id)

    async def ping(self) -> None:
        """Return if the backend answers; raise `BackendUnavailableError` if not. For readiness."""
        await self._backend.ping()

    @property
    def draining(self) -> bool:
        """Whether `drain` was called. A readiness probe should fail from then on."""
        return self._draining

    async def drain(self, timeout: float | None = None) -> int:
        """Refuse new entries, for good, and wait until all who wait or hold have left.

        Cancels nobody. A task that already holds a slot of this Queue may still enter, so that it can
        come to its end. Entries are refused with `QueueDrainingError`, also after a timeout or if this
        is cancelled. Returns only when the backend has confirmed what was given back; without a
        timeout, it waits for a backend that is away.

        Args:
            timeout: seconds to wait at most; None waits as long as it takes.

        Returns:
            How many calls of this Queue still wait or hold; 0 unless the timeout came first.

        Raises:
            RuntimeError: at once; the calls are in another event loop, or this task itself holds a slot
                and would wait for itself.
        """
        timeout = check_timeout("drain: timeout", timeout)
        calls = self._calls
        loop = get_running_loop()
        if calls is not None and calls.loop is not loop:
            if calls.agreements and not calls.loop.is_closed():
                raise RuntimeError("this Queue has calls in another event loop; drain it there")
            calls = None
        if calls is not None and calls.this_task_holds():
            raise RuntimeError(
                "drain was called by a task that holds a slot of this Queue; leave it first"
            )
        self._draining = True
        if calls is None:
            return 0
        deadline = None if timeout is None else loop.time() + timeout
        await asyncio.wait({calls.all_gone()}, timeout=timeout)
        if calls.count:
            return calls.count
        flushed = asyncio.ensure_future(self._backend.flush())
        try:
            rest = None if deadline is None else max(0.0, deadline - loop.time())
            await asyncio.wait({flushed}, timeout=rest)
        finally:
            flushed.cancel()
        return calls.count

    async def close(self) -> None:
        """Give back all that this Queue has and close the backend; waiters get an error.

        Waits for the backend's reply at most 1 s, and not at all while it is known to be away; what it
        has not got then is given back when the lease lapses. Calling it again does nothing.
        """
        self.watches.close()
        await self._backend.close()

    async def __aenter__(self) -> Queue:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _calls_here(self, request: EnterRequest) -> Calls:
        """For `SlotRequest`, if its event loop is another one than before, or `drain` was called.

        Raises:
            QueueDrainingError: it may not enter.
            RuntimeError: the calls of another event loop are in the lines.
        """
        calls = self._calls
        loop = get_running_loop()
        if calls is None or calls.loop is not loop:
            if calls is not None and calls.agreements and not calls.loop.is_closed():
                raise RuntimeError(
                    f"queue {request.queue_id!r}: this Queue has calls in another event loop; use it "
                    "in one event loop at a time, or make a Queue on a RedisBackend for each thread"
                )
            calls = self._calls = Calls(loop)
        if self._draining and not calls.this_task_holds():
            self._backend.refused(request, "draining")
            raise QueueDrainingError(request.queue_id, request.item_id)
        return calls
