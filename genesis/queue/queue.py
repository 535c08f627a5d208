"""`Queue`: the public entry point of the library."""

from __future__ import annotations

import asyncio
import uuid
from asyncio import get_running_loop
from functools import partial

from genesis.backends.memory import InMemoryBackend
from genesis.backends.protocol import EnterRequest, QueueBackend, QueueEntry, QueueStats, new_tuple
from genesis.exceptions import QueueDrainingError
from genesis.observability.layer import ObservedBackend
from genesis.observability.telemetry import Telemetry
from genesis.queue.arguments import (
    check_id,
    check_limit,
    check_place_token,
    check_seconds,
    check_timeout,
)
from genesis.queue.calls import Calls
from genesis.queue.request import SlotRequest
from genesis.queue.semaphore import QueueSemaphore
from genesis.queue.watch import Watch, Watches
from genesis.version import VERSION

_ZERO = 0.0  # compared by identity: a default argument needs no check


class Queue:
    """A fair waiting line with a limit on how many calls hold a slot at once.

    Slots are granted by place: the time of entering less the head start, over all instances that share
    the backend. A task can be cancelled at any point, before, during or after its grant: no slot leaks
    and no waiter is stranded.

    Args:
        backend: stores the lines; a new `InMemoryBackend` if None. A backend belongs to one Queue,
            which closes it.
        telemetry: where to report; the process' default registry, tracer provider and logger if None.
            Every backend operation is observed, whatever the backend is.

    Raises:
        TypeError: `backend` is not a backend object.
        RuntimeError: `backend` already belongs to a Queue.
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
        self._calls: Calls | None = None  # of the event loop that was used last
        self._draining = False
        self.watches = Watches(self)

    @property
    def instance_id(self) -> str:
        """The name of this instance in entries, spans and log events."""
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
        """Wait for a slot on entering the `async with` block; give it back on leaving.

        Leaving waits for nothing and raises no error of its own. A slot that cannot be given back now
        is given back when the backend is reached again, or when the lease lapses.

        Args:
            queue_id: the queue; any non-empty str.
            item_id: the call's id in exemplars, traces, logs and introspection; a new UUID if None.
                Two waiters can share an id.
            max_concurrent: the queue's limit, at least 1. None uses the limit in force, or 1.
            timeout: a deadline in seconds from entering `async with`, whatever the backend does. None
                waits without a deadline. 0 takes a slot only if one is free now, and allows the
                backend at most 1 s for its reply.
            max_waiting: refuse the call if no slot is free and this many calls already wait; 0 or
                more. A call that has been enqueued is never refused afterwards.
            head_start: seconds, 0 to 86,400; the call is ordered as if it had entered that much
                earlier.
            keep_place: seconds, 0 to 86,400, for which the place is kept if the wait is cancelled.
                Nothing is kept after a timeout, a refusal or an eviction.
            place_token: `SlotRequest.place_token` of a cancelled call. The new call takes that place
                if it is still kept, otherwise the end of the line. The token is not used up if the
                new call raises before it waits or holds.

        Raises:
            TypeError, ValueError: at once; a bad argument, or a token of another queue.
            LimitMismatchError: on entering; this Queue has calls in that queue with another limit.
            QueueTimeoutError: on entering; the call was enqueued and got no slot in time, or timeout=0
                and no slot was free.
            QueueFullError: on entering; `max_waiting` calls wait.
            QueueDrainingError: on entering; `drain` was called, and this task holds no slot.
            EvictedError: on entering; the waiter was evicted.
            BackendUnavailableError: on entering; the backend did not enqueue the call in time, or it
                was closed.
            RuntimeError: on entering; the request was entered before, or this Queue has calls in
                another event loop.
        """
        queue_id = check_id("queue_id", queue_id)
        item_id = str(uuid.uuid4()) if item_id is None else check_id("item_id", item_id)
        if max_concurrent is not None:
            check_limit("max_concurrent", queue_id, max_concurrent, 1)
        if max_waiting is not None:
            check_limit("max_waiting", queue_id, max_waiting, 0)
        if timeout is not None:
            timeout = check_timeout(f"queue {queue_id!r}: timeout", timeout)
            if timeout == 0:
                max_waiting = 0
        if head_start is not _ZERO:
            head_start = check_seconds(f"queue {queue_id!r}: head_start", head_start)
        if keep_place is not _ZERO:
            keep_place = check_seconds(f"queue {queue_id!r}: keep_place", keep_place)
        token = "" if place_token is None else check_place_token(queue_id, place_token)
        fields = (queue_id, item_id, max_concurrent, "", max_waiting, head_start, token, timeout)
        return SlotRequest(self, new_tuple(EnterRequest, fields), keep_place)

    def semaphore(
        self,
        queue_id: str,
        max_concurrent: int | None = None,
        timeout: float | None = None,
        *,
        max_waiting: int | None = None,
        head_start: float = _ZERO,
        keep_place: float = _ZERO,
    ) -> QueueSemaphore:
        """A reusable handle on a queue, for any number of tasks at once.

        Arguments and errors are those of `slot`. Pass `item_id` and `place_token` when you call the
        handle: `async with semaphore(item_id=...) as slot`.
        """
        queue_id = check_id("queue_id", queue_id)
        slot = partial(
            self.slot,
            queue_id,
            max_concurrent=max_concurrent,
            timeout=timeout,
            max_waiting=max_waiting,
            head_start=head_start,
            keep_place=keep_place,
        )
        slot(item_id="any")  # check the arguments now
        return QueueSemaphore(queue_id, slot)

    def watch(
        self, queue_id: str, item_id: str, *, every: float = 30.0, at_least: float = 10.0
    ) -> Watch:
        """Watch an item's position: an async iterator of `WaitStatus`.

        The first status comes at once. If the item does not wait yet, the first status comes when it
        enters: at once through this Queue, within `at_least` seconds through another. Later statuses
        come when the position changes, and otherwise after `every` seconds, rounded up to whole ticks.
        If several waiters share the id, the one that `position` selects is watched. The iterator ends
        when the item is granted or gone (noticed within `at_least` seconds) and when the Queue is
        closed. It yields nothing while the backend is unavailable.

        If the item already holds a slot, or is granted one at once through another Queue, the iterator
        waits for it to enter again. For a call of this Queue use `SlotRequest.watch`, which ends with
        the call's wait.

        An instance sends one command per queue, tick and 500 watched items. The tick of a queue is the
        smallest `at_least` of its watches. A watch that is not iterated costs nothing, and a watch need
        not be closed.

        `WaitStatus.expected_wait` grows only with new evidence: longer holds, a lower limit, a newcomer
        with a head start.

        Args:
            queue_id: the queue.
            item_id: the item, on any instance.
            every: seconds, more than 0.
            at_least: minimum seconds between two statuses; `every` if that is less.

        Raises:
            TypeError, ValueError: at once; a bad argument.
        """
        queue_id, item_id = check_id("queue_id", queue_id), check_id("item_id", item_id)
        return Watch(self.watches, queue_id, item_id, every, at_least)

    async def set_limit(self, queue_id: str, limit: int | None) -> None:
        """Override the limit of a queue at every call site, live, on all instances.

        A higher limit grants slots to waiters at once; a lower limit takes effect as holders leave.

        Args:
            queue_id: the queue.
            limit: 0 pauses the queue; None ends the override.

        Raises:
            TypeError, ValueError: a bad argument.
            BackendUnavailableError: the backend was closed or did not reply. In the second case the
                limit might have been set; repeating the call is safe.
        """
        queue_id = check_id("queue_id", queue_id)
        check_limit("limit", queue_id, limit, least=0)
        await self._backend.set_limit(queue_id, limit)

    async def stats(self, queue_id: str) -> QueueStats:
        """Counts, limit, longest wait and hold, and the mean of recent holds, over all instances."""
        return await self._backend.stats(check_id("queue_id", queue_id))

    async def position(self, queue_id: str, item_id: str) -> int | None:
        """The item's position in the line: 1 is next, None if it does not wait.

        If several waiters share the id: the first one of this instance, if any, otherwise the first in
        the line.

        Raises:
            BackendUnavailableError: the backend was closed or did not reply, or it has lost its data
                and was not yet told again of this Queue's call.
        """
        queue_id, item_id = check_id("queue_id", queue_id), check_id("item_id", item_id)
        (status,) = await self._backend.wait_status(queue_id, [item_id])
        return None if status is None else status.position

    async def entries(self, queue_id: str) -> list[QueueEntry]:
        """The holders in the order of their grants, then the waiters in the order of the line."""
        return await self._backend.entries(check_id("queue_id", queue_id))

    async def evict(self, queue_id: str, item_id: str) -> int:
        """Remove every ticket of an item from the queue, on any instance.

        A waiter gets `EvictedError`. A holder loses its slot, and its `slot.lost` becomes true.

        Returns:
            The number of tickets removed; 0 if the item was not in the queue.

        Raises:
            BackendUnavailableError: the backend was closed or did not reply. In the second case the
                item might have been evicted; repeating the call is safe.
        """
        queue_id, item_id = check_id("queue_id", queue_id), check_id("item_id", item_id)
        return await self._backend.evict(queue_id, item_id)

    async def ping(self) -> None:
        """Raise `BackendUnavailableError` unless the backend replies. For readiness probes."""
        await self._backend.ping()

    @property
    def draining(self) -> bool:
        """Whether `drain` was called. From then on, a readiness probe should fail."""
        return self._draining

    async def drain(self, timeout: float | None = None) -> int:
        """Refuse new entries for good, and wait until every waiter and holder has left.

        New entries get `QueueDrainingError`, also after `drain` timed out or was cancelled. No call is
        cancelled. A task that already holds a slot of this Queue can still enter, because it might
        need a second slot to finish. `drain` returns when the backend has confirmed every release;
        without a timeout it waits for an unavailable backend.

        Args:
            timeout: the maximum wait in seconds; None waits without a deadline.

        Returns:
            The number of calls of this Queue that still wait or hold; 0 unless the timeout expired.

        Raises:
            TypeError, ValueError: a bad timeout.
            RuntimeError: at once; the calls are in another event loop, or this task itself holds a slot
                and would wait for itself.
        """
        timeout = check_timeout("drain: timeout", timeout)
        calls = self._calls
        if calls is not None and calls.loop is not get_running_loop():
            if calls.agreements and not calls.loop.is_closed():
                raise RuntimeError("this Queue has calls in another event loop; drain it there")
            calls = None
        if calls is not None and calls.this_task_holds():
            await asyncio.sleep(0)  # a generator that was closed gives back its slot meanwhile
            if calls.this_task_holds():
                raise RuntimeError(
                    "drain was called by a task that holds a slot of this Queue; leave it first"
                )
        self._draining = True
        if calls is None:
            return 0
        drained = asyncio.ensure_future(self._until_drained(calls))
        try:
            await asyncio.wait({drained}, timeout=timeout)
        finally:
            drained.cancel()
        return calls.count

    async def _until_drained(self, calls: Calls) -> None:
        await calls.until_empty()
        await self._backend.flush()

    async def close(self) -> None:
        """Give everything back and close the backend; waiters get `BackendUnavailableError`.

        Waits at most 1 s for the backend's reply, and not at all while the backend is known to be
        unavailable. Whatever is not confirmed by then is given back when the lease lapses. A second
        call does nothing.
        """
        self.watches.close()
        await self._backend.close()

    async def __aenter__(self) -> Queue:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _calls_here(self, request: EnterRequest) -> Calls:
        """The slow path of `SlotRequest`: the event loop has changed, or `drain` was called.

        Raises:
            QueueDrainingError: `drain` was called, and this task holds no slot.
            RuntimeError: this Queue has calls in another event loop.
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
