"""`SlotRequest`: one call in a queue, from entering to leaving."""

from __future__ import annotations

import asyncio
from asyncio import current_task, get_running_loop
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import ref

from genesis.backends.protocol import EnterRequest, EnterResult, Ticket
from genesis.exceptions import GenesisError, QueueFullError, QueueTimeoutError
from genesis.queue.calls import Calls
from genesis.queue.slot import Slot
from genesis.queue.watch import Watch

if TYPE_CHECKING:
    from genesis.queue.queue import Queue


@dataclass(eq=False, repr=False, slots=True)
class SlotRequest:
    """The result of `Queue.slot`. Enter it once, with `async with`.

    Leaving waits for nothing. If `aclose` or the garbage collector closes the generator or coroutine
    that holds the slot, the slot is given back in the next iteration of the event loop.

    Attributes:
        queue_id: the queue.
        item_id: the item.
        place_token: an opaque token for the call's place; None until the call waits. Pass it to
            `Queue.slot` after this call was cancelled, if `keep_place` was given.
        resumed: whether the call took the place named by its own `place_token` argument.
        slot: the slot while it is held, otherwise None.
    """

    _queue: Queue
    _request: EnterRequest
    _keep_place: float
    _entered: bool = False
    _calls: Calls | None = None  # while the call is in the queue
    _watches: list[Watch] | None = None  # of this request, until its wait ends
    ticket: Ticket | None = None  # while it waits
    _waits_at: EnterResult | None = None  # once it waits
    resumed: bool = False
    slot: Slot | None = None

    @property
    def place_token(self) -> str | None:
        return None if self._waits_at is None else self._waits_at.place_token

    @property
    def queue_id(self) -> str:
        return self._request.queue_id

    @property
    def item_id(self) -> str:
        return self._request.item_id

    async def __aenter__(self) -> Slot:
        # Do not split this into nested coroutines: each wake-up of the task would resume all of them.
        if self._entered:
            raise RuntimeError("a slot request is entered once; call queue.slot() for each use")
        self._entered = True
        queue, request = self._queue, self._request
        calls = queue._calls
        try:
            if calls is None or calls.loop is not get_running_loop() or queue._draining:
                calls = queue._calls_here(request)
            must_delay = calls.enter(request)
        except BaseException as error:
            self._stop_waiting()  # a watch that was created before must not wait for ever
            if isinstance(error, GenesisError):
                await asyncio.sleep(0)  # a caller that retries at once must not stop the loop
            raise
        self._calls = calls
        backend, timeout = queue._backend, request.timeout
        if timeout is not None:
            deadline = calls.loop.time() + timeout
        try:
            if must_delay:
                await calls.delay()
            result = await backend.enter(request)
            grant = result.grant
            if result.resumed:
                self.resumed = True
            if grant is None:
                if not result.position:
                    raise self._refused(result)
                self.ticket = result.ticket
                self._waits_at = result
                if queue.watches.tickers:
                    queue.watches.entered(request.queue_id, request.item_id)
                if timeout is not None:
                    timeout = max(0.0, deadline - calls.loop.time())
                grant = await backend.wait(result.ticket, timeout)
        except BaseException as error:
            if isinstance(error, GeneratorExit):
                calls.call_soon(self._give_up, self._keep_place)
                raise
            cancelled = isinstance(error, asyncio.CancelledError)
            waited = self.ticket is not None
            self._give_up(self._keep_place if cancelled else 0.0)
            if not waited and isinstance(error, Exception):
                await asyncio.sleep(0)  # as above
            if waited and isinstance(error, TimeoutError) and request.timeout is not None:
                raise QueueTimeoutError(self.queue_id, self.item_id, request.timeout) from None
            raise
        calls.holding[self] = ref(current_task(calls.loop) or calls)
        self.slot = slot = Slot(result.ticket, grant, backend.lapsed)
        if self.ticket is not None or self._watches is not None:
            self._stop_waiting()
        if queue.watches.tickers:
            queue.watches.granted(request.queue_id, request.item_id)
        return slot

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        slot, calls = self.slot, self._calls
        if slot is None or calls is None:
            if not self._entered:
                raise RuntimeError("this slot request was never entered, so there is nothing to leave")
            return  # entering failed
        if error is not None and isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            if isinstance(error, GeneratorExit):
                calls.call_soon(_run, self.__aexit__)
                return
            error = None  # a cancelled call has not failed
        self.slot = self._calls = None
        ticket = slot.ticket
        try:
            slot.mark_left()
        finally:  # `mark_left` calls the backend, which might raise; give the slot back regardless
            del calls.holding[self]
            calls.leave(ticket.queue_id)
            self._queue._backend.leave(ticket, "", 0.0, error)

    def watch(self, *, every: float = 30.0, at_least: float = 10.0) -> Watch:
        """Watch this call's position. Call it before entering or during the wait.

        Arguments, results and errors are those of `Queue.watch`. The iterator ends at once when the
        wait ends.
        """
        watch = Watch(self._queue.watches, self.queue_id, self.item_id, every, at_least, self)
        if self._entered and (self.slot is not None or self._calls is None):
            watch.end()  # the wait is over
        elif self._watches is None:
            self._watches = [watch]
        else:
            self._watches.append(watch)
        return watch

    def _refused(self, result: EnterResult) -> Exception:
        if self._request.timeout == 0:
            return QueueTimeoutError(self.queue_id, self.item_id, 0)
        return QueueFullError(self.queue_id, self.item_id, result.depth, result.retry_after)

    def _stop_waiting(self) -> None:
        watches, self._watches, self.ticket = self._watches, None, None
        for watch in watches or ():
            watch.end()

    def _give_up(self, keep_place: float) -> None:
        """Give back the place, or the slot if one was granted meanwhile, and stop counting the call."""
        calls, self._calls = self._calls, None
        ticket = self.ticket
        self._stop_waiting()
        if calls is not None:
            calls.leave(self.queue_id)
        if ticket is not None:
            self._queue._backend.leave(ticket, keep_place=keep_place)


def _run(leave: Callable[[None, None, None], Coroutine[object, None, None]]) -> None:
    """Run a coroutine that awaits nothing to its end."""
    with suppress(StopIteration):
        leave(None, None, None).send(None)
