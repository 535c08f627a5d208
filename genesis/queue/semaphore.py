"""`QueueSemaphore`: a reusable handle on a queue."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import NamedTuple

from genesis.queue.calls import task_id
from genesis.queue.request import SlotRequest
from genesis.queue.slot import Slot


class _Use(NamedTuple):
    token: int
    task: int
    frame: int
    request: SlotRequest


@dataclass(eq=False, repr=False, slots=True)
class QueueSemaphore:
    """The result of `Queue.semaphore`. Reusable, by any number of tasks at once.

    Each `async with` block gives back its own slot. That holds too if the block is in an async
    generator that another task or the garbage collector closes.

    Without the statement (through an `AsyncExitStack`, or by calling `__aexit__`), leaving gives back
    the slot that the current task took last; RuntimeError if it holds none. Such uses must therefore be
    nested, in one task: anything else gives back another block's slot. In code that cannot promise
    this, enter `sem()` or `sem(item_id=...)`: each is an object of its own, which gives back its own
    slot in any task and order.
    """

    queue_id: str
    _slot: Callable[..., SlotRequest]  # `Queue.slot` with the arguments of this semaphore
    # Slots held through this handle, by the id of the task that entered, oldest first. A reference
    # to the task itself would keep an abandoned task alive for ever.
    _held: dict[int, list[_Use]] = field(default_factory=dict)

    def __call__(self, item_id: str | None = None, place_token: str | None = None) -> SlotRequest:
        """A request for a slot, as `Queue.slot` returns: `async with sem(item_id=...) as slot`."""
        return self._slot(item_id=item_id, place_token=place_token)

    async def __aenter__(self) -> Slot:
        frame = _frame_id(sys._getframe(1))
        request = self()
        slot = await request.__aenter__()
        use = _Use(slot.fencing_token, task_id(), frame, request)
        self._held.setdefault(use.task, []).append(use)
        return slot

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        request = self._take(sys._getframe(1), isinstance(error, GeneratorExit))
        await request.__aexit__(kind, error, traceback)

    def _take(self, frame: FrameType, closed: bool) -> SlotRequest:
        """Remove and return the request of the block that is being left.

        The same frame enters and leaves an `async with` statement, whichever task or garbage collector
        resumes it. A direct call has no such frame; it takes the task's last request.
        """
        block = _frame_id(frame)
        own = self._held.get(task_id(), [])
        found = [use for use in own if use.frame == block != 0]
        if not found and (closed or frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR):
            everywhere = (use for uses in self._held.values() for use in uses)
            # A frame that ended might have had the same id; its requests are older.
            found = sorted(use for use in everywhere if use.frame == block != 0)
        elif not found:
            found = own
        if not found:
            raise RuntimeError(
                f"queue {self.queue_id!r}: this task holds no slot of this semaphore, so it has none "
                "to give back. Leave a semaphore in the task that entered it, or use `async with sem() "
                "as slot`, whose slot can be left anywhere."
            )
        use = found[-1]
        uses = self._held[use.task]
        uses.remove(use)
        if not uses:
            del self._held[use.task]
        return use.request


def _frame_id(frame: FrameType) -> int:
    """An id of a coroutine's frame; 0 for others, such as a loop that runs `__aenter__` as a task.

    The code tells a frame from an earlier one at the same address: a wrapper's `__aexit__` might get
    the address that its `__aenter__` had.
    """
    flags = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
    return hash((id(frame), id(frame.f_code))) if frame.f_code.co_flags & flags else 0
