"""`QueueSemaphore`: a reusable handle on a queue."""

from __future__ import annotations

import inspect
import sys
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from genesis.queue.calls import task_id
from genesis.queue.request import SlotRequest
from genesis.queue.slot import Slot

if TYPE_CHECKING:
    from genesis.queue.queue import Queue

__all__ = ["QueueSemaphore"]


class _Use(NamedTuple):
    request: SlotRequest
    token: int
    frame: int


class QueueSemaphore:
    """What `Queue.semaphore` returns: enter it as often as you like, from as many tasks at once.

    Each `async with` block gives back its own slot, also if it is in an async generator that another
    task closes, and if the garbage collector closes it. What is not written as `async with` (an
    `AsyncExitStack`, a direct call of `__aexit__`) must be left in the task that entered it, the last
    one first; anything else is a RuntimeError. `async with sem() as slot` may be left anywhere.
    """

    __slots__ = ("_held", "_options", "_queue", "max_concurrent", "queue_id", "timeout")

    def __init__(self, queue: Queue, queue_id: str, options: dict[str, Any]) -> None:
        self._queue = queue
        self._options = options
        self.queue_id = queue_id
        self.max_concurrent: int | None = options["max_concurrent"]
        self.timeout: float | None = options["timeout"]
        # What is held through this handle, by the id of the task that entered, the last one last. Not
        # by the task: a reference to one that all others have forgotten would keep it for ever.
        self._held: dict[int, list[_Use]] = {}

    def __call__(self, item_id: str | None = None, place_token: str | None = None) -> SlotRequest:
        """A slot for a named item: `async with sem(item_id=...) as slot`."""
        return self._queue.slot(
            self.queue_id, item_id=item_id, place_token=place_token, **self._options
        )

    async def __aenter__(self) -> Slot:
        frame = _frame_id(sys._getframe(1))
        request = self()
        slot = await request.__aenter__()
        use = _Use(request, slot.fencing_token, frame)
        self._held.setdefault(task_id(), []).append(use)
        return slot

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        request = self._take(sys._getframe(1), isinstance(error, GeneratorExit))
        await request.__aexit__(kind, error, traceback)

    def _take(self, frame: FrameType, broken_off: bool) -> SlotRequest:
        """The request of the block that is being left.

        The frame that runs an `async with` statement is the same on entering and on leaving it,
        whichever task or collector makes it go on. A call from elsewhere has no such frame; then it is
        the task's last one.
        """
        block, task = _frame_id(frame), task_id()
        own = self._held.get(task, ())
        for use in reversed(own):
            if use.frame == block != 0:
                return self._forget(task, use)
        if broken_off or frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR:
            found = [
                (use.token, other, use)
                for other, uses in self._held.items()
                for use in uses
                if use.frame == block != 0
            ]
            if found:
                # Of an ended frame with the same id, only older ones can be left.
                _, other, use = max(found)
                return self._forget(other, use)
        elif own:
            return self._forget(task, own[-1])
        raise RuntimeError(
            f"queue {self.queue_id!r}: this task holds no slot of this semaphore, so it has none to "
            "give back. Leave a semaphore in the task that entered it, or use `async with sem() as "
            "slot`, whose slot may be left anywhere."
        )

    def _forget(self, task: int, use: _Use) -> SlotRequest:
        uses = self._held[task]
        uses.remove(use)
        if not uses:
            del self._held[task]
        return use.request


def _frame_id(frame: FrameType) -> int:
    """0 if it cannot contain `async with`, as an event loop's that runs `__aenter__` as a task."""
    flags = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
    return id(frame) if frame.f_code.co_flags & flags else 0
