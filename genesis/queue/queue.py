"""`Queue`: the library's face."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from types import FrameType, TracebackType
from typing import Any

from genesis.backends.memory import InMemoryBackend
from genesis.backends.protocol import (
    EnterRequest,
    QueueBackend,
    QueueEntry,
    QueueStats,
    Ticket,
    new_tuple,
)
from genesis.exceptions import LimitMismatchError, QueueTimeoutError
from genesis.observability.layer import ObservedBackend
from genesis.observability.telemetry import Telemetry
from genesis.queue.arguments import check_id, check_limit, check_timeout
from genesis.queue.slot import Slot
from genesis.version import VERSION

__all__ = ["Queue", "QueueSemaphore", "SlotRequest"]


class Queue:
    """A fair waiting line with a limit on how many hold a slot at once.

    Slots of a queue are granted strictly in the order of entering, over all instances that share the
    backend. Cancelling a task at any point, before, during or after its grant, leaks nothing and
    strands nobody.

    Args:
        backend: where the lines are kept; a new `InMemoryBackend` if None. A backend belongs to one
            Queue, which closes it.
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
        # How many calls of this object are in a queue, and the limit that they agree on.
        self._agreements: dict[str, tuple[int, int | None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None  # of these calls
        self._late: set[asyncio.Task[None]] = set()  # endings put off, see `_end_later`

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
    ) -> SlotRequest:
        """Wait for a slot on entering the `async with` block, give it back on leaving it.

        Args:
            queue_id: names the line; any non-empty str.
            item_id: names the call in metrics' exemplars, traces, logs and introspection; a new UUID
                if None. Two waiters may bear the same.
            max_concurrent: the queue's limit, at least 1. None takes the limit it has, or 1.
            timeout: seconds to wait at most; None waits as long as it takes, 0 takes a slot only if it
                is free now.

        Raises:
            TypeError, ValueError: at once, for a bad argument.
            LimitMismatchError: on entering; this Queue has calls in that queue with another limit.
            QueueTimeoutError: on entering; no slot in time.
            EvictedError: on entering; somebody evicted the waiter.
            BackendUnavailableError: on entering; the backend cannot be reached. Leaving never raises
                it: what is given back is owed until the backend is reached, or its lease lapses.
        """
        check_id("queue_id", queue_id)
        if item_id is None:
            item_id = str(uuid.uuid4())
        else:
            check_id("item_id", item_id)
        if max_concurrent is not None:
            check_limit("max_concurrent", queue_id, max_concurrent, least=1)
        if timeout is not None:
            timeout = check_timeout(queue_id, timeout)
        entry = new_tuple(EnterRequest, (queue_id, item_id, max_concurrent, timeout == 0, ""))
        return SlotRequest(self, entry, timeout)

    def semaphore(
        self, queue_id: str, max_concurrent: int | None = None, timeout: float | None = None
    ) -> QueueSemaphore:
        """A reusable handle on a queue, for any number of tasks at once.

        Args and raises: as `slot`.
        """
        check_id("queue_id", queue_id)
        check_limit("max_concurrent", queue_id, max_concurrent, least=1)
        timeout = check_timeout(queue_id, timeout)
        return QueueSemaphore(self, queue_id, max_concurrent, timeout)

    async def set_limit(self, queue_id: str, limit: int | None) -> None:
        """Override the limit of a queue at every call site, live, on all instances.

        Raising it grants slots to waiters at once; lowering it takes effect as holders leave.

        Args:
            queue_id: the queue's.
            limit: 0 pauses the queue; None ends the override.
        """
        check_id("queue_id", queue_id)
        check_limit("limit", queue_id, limit, least=0)
        await self._backend.set_limit(queue_id, limit)

    async def stats(self, queue_id: str) -> QueueStats:
        """Waiting, in use, limit and the oldest wait in seconds, over all instances."""
        check_id("queue_id", queue_id)
        return await self._backend.stats(queue_id)

    async def position(self, queue_id: str, item_id: str) -> int | None:
        """The item's place in the line: 1 is next, None if it does not wait."""
        check_id("queue_id", queue_id)
        check_id("item_id", item_id)
        return await self._backend.position(queue_id, item_id)

    async def entries(self, queue_id: str) -> list[QueueEntry]:
        """Who holds, in the order of the grants, and then who waits, in the order of the line."""
        check_id("queue_id", queue_id)
        return await self._backend.entries(queue_id)

    async def evict(self, queue_id: str, item_id: str) -> int:
        """Take every ticket of an item out of the queue, on whichever instance it is.

        A waiter gets `EvictedError`; a holder's slot is taken back and its `slot.lost` turns true.

        Returns:
            How many tickets there were; 0 if the item was not in the queue.
        """
        check_id("queue_id", queue_id)
        check_id("item_id", item_id)
        return await self._backend.evict(queue_id, item_id)

    async def ping(self) -> None:
        """Return if the backend answers; raise `BackendUnavailableError` if not. For readiness."""
        await self._backend.ping()

    async def close(self) -> None:
        """Give back all that this Queue has and close the backend; waiters get an error.

        A backend that cannot be reached is tried for its operation timeout; then it is closed, and what
        was owed to it is taken back when the lease lapses.
        """
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

    def _agree(self, entry: EnterRequest) -> None:
        queue_id, limit = entry.queue_id, entry.limit
        agreement = self._agreements.get(queue_id)
        if agreement is None:
            self._loop = asyncio.get_running_loop()
            self._agreements[queue_id] = (1, limit)
            return
        calls, agreed = agreement
        if agreed is None:
            agreed = limit
        elif limit is not None and limit != agreed:
            raise LimitMismatchError(queue_id, entry.item_id, agreed, limit)
        self._agreements[queue_id] = (calls + 1, agreed)

    def _disagree(self, queue_id: str) -> None:
        """One call fewer is in the queue; without any, its limit is forgotten."""
        calls, agreed = self._agreements[queue_id]
        if calls == 1:
            del self._agreements[queue_id]
        else:
            self._agreements[queue_id] = (calls - 1, agreed)

    def _interrupted(self) -> bool:
        """Whether the ending of a call comes out of nowhere, in the middle of another call's step.

        asyncio holds tasks weakly. If nothing else holds one, the collector may close it at any
        allocation: of this library, whose every step counts on being left alone, in another thread, or
        outside of all tasks, where nothing can be awaited.
        """
        loop = self._loop
        if loop is None or loop.is_closed():
            return False  # nothing else is at work any more
        if asyncio._get_running_loop() is not loop or asyncio.current_task() is None:
            return True
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_globals is globals():
            frame = frame.f_back  # the ending itself
        while frame is not None:
            if str(frame.f_globals.get("__name__")).startswith("genesis."):
                return True
            frame = frame.f_back
        return False

    def _end_later(self, ending: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """In a turn of the loop, which has nothing else under way then."""
        assert self._loop is not None

        def begin() -> None:
            task = asyncio.ensure_future(ending())
            self._late.add(task)
            task.add_done_callback(self._late.discard)

        # In no context: it is not that of the call which was interrupted.
        self._loop.call_soon_threadsafe(begin, context=Context())


class SlotRequest:
    """What `Queue.slot` returns: enter it with `async with`, once."""

    __slots__ = ("_entry", "_queue", "_timeout", "slot")

    def __init__(self, queue: Queue, entry: EnterRequest, timeout: float | None) -> None:
        self._queue = queue
        self._entry: EnterRequest | None = entry  # until it is entered
        self._timeout = timeout
        self.slot: Slot | None = None  # while it is held

    async def __aenter__(self) -> Slot:
        # One coroutine, and none inside it: a task that is woken passes through each of them again.
        entry, self._entry = self._entry, None
        if entry is None:
            raise RuntimeError("a slot request is entered once; call queue.slot() for each use")
        queue = self._queue
        queue._agree(entry)
        backend = queue._backend
        ticket = None
        try:
            admission = await backend.enter(entry)
            grant = admission.grant
            if grant is None:
                if admission.position == 0:
                    raise QueueTimeoutError(entry.queue_id, entry.item_id, 0)
                ticket = admission.ticket
                grant = await backend.wait(ticket, self._timeout)
        except BaseException as error:
            if isinstance(error, GeneratorExit) and queue._interrupted():
                queue._end_later(partial(self._give_up, entry.queue_id, ticket))
                raise
            await self._give_up(entry.queue_id, ticket)
            if ticket is not None and isinstance(error, TimeoutError) and self._timeout is not None:
                raise QueueTimeoutError(entry.queue_id, entry.item_id, self._timeout) from None
            raise
        self.slot = slot = Slot(admission.ticket, grant, backend.lapsed)
        return slot

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        queue = self._queue
        if error is not None and isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            if isinstance(error, GeneratorExit) and queue._interrupted():
                queue._end_later(partial(self.__aexit__, None, None, None))
                return
            error = None  # a call that is cancelled has not failed
        slot, self.slot = self.slot, None
        if slot is None:
            return  # its entering had failed
        ticket = slot.ticket
        try:
            slot.mark_left()
        finally:  # it asks the backend, which may be anybody's; the slot is given back all the same
            queue._disagree(ticket.queue_id)
            await queue._backend.leave(ticket, error=error)

    async def _give_up(self, queue_id: str, ticket: Ticket | None) -> None:
        """Whatever ended the wait, and whatever the ticket has got by now: it is given back."""
        self._queue._disagree(queue_id)
        if ticket is not None:
            # The backend acts before it first suspends, so a second cancellation here cuts off only
            # the waiting for its answer.
            await self._queue._backend.leave(ticket)


class QueueSemaphore:
    """What `Queue.semaphore` returns: enter it as often as you like, from as many tasks at once."""

    __slots__ = ("_held", "_queue", "max_concurrent", "queue_id", "timeout")

    def __init__(
        self, queue: Queue, queue_id: str, max_concurrent: int | None, timeout: float | None
    ) -> None:
        self._queue = queue
        self.queue_id = queue_id
        self.max_concurrent = max_concurrent
        self.timeout = timeout
        # What is held through this handle, by the id of the task that entered, the last one last. Not
        # by the task: who holds a task that all others have forgotten keeps it from giving back.
        self._held: dict[int, list[SlotRequest]] = {}

    def __call__(self, item_id: str | None = None) -> SlotRequest:
        """A slot for a named item: `async with sem(item_id=...) as slot`."""
        return self._queue.slot(
            self.queue_id,
            item_id=item_id,
            max_concurrent=self.max_concurrent,
            timeout=self.timeout,
        )

    async def __aenter__(self) -> Slot:
        request = self()
        slot = await request.__aenter__()
        self._held.setdefault(_task_id(), []).append(request)
        return slot

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task = _task_id()
        if task not in self._held:
            # Left in another task than entered. Slots without a name are alike: give one back.
            task = next(iter(self._held))
        requests = self._held[task]
        request = requests.pop()
        if not requests:
            del self._held[task]
        await request.__aexit__(kind, error, traceback)


def _task_id() -> int:
    try:
        return id(asyncio.current_task())
    except RuntimeError:  # no loop: the collector closes a task in another thread
        return id(None)
