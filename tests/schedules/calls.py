"""The application's side of one call: its steps, and its end, exactly once."""

from __future__ import annotations

import asyncio
from typing import Any

from genesis import Queue, QueueTimeoutError
from genesis.exceptions import BackendUnavailableError, EvictedError, LimitMismatchError
from genesis.queue.slot import Slot
from tests.schedules.loop import VirtualLoop
from tests.schedules.scenario import CallPlan

__all__ = ["BodyFailed", "Call", "Violation"]


class Violation(AssertionError):  # noqa: N818
    """A promise was broken; the message says which."""


class BodyFailed(Exception):  # noqa: N818
    """The error of a body that should fail."""


class Call:
    """One task, from before its start to after its end.

    `ending` is one of released, failed, cancelled, timeout, evicted, unavailable, mismatch. `inside` is
    true while the body runs.
    """

    def __init__(self, number: int, plan: CallPlan, loop: VirtualLoop) -> None:
        self.number = number
        self.plan = plan
        self.loop = loop
        self.cancels_left = plan.cancels
        self.cancelled = False  # at least once
        self.began = False  # its task has run at all
        self.ending = ""
        self.inside = False
        self.slot: Slot | None = None
        self.go: asyncio.Future[None] = loop.create_future()
        self.let_go = False
        self.task: asyncio.Task[Any] | None = None

    @property
    def done(self) -> bool:
        return self.task is not None and self.task.done()

    def start(self, queue: Queue) -> None:
        self.task = self.loop.create_task(self._run(queue))

    def cancel(self) -> None:
        assert self.task is not None
        self.cancels_left -= 1
        self.cancelled = True
        self.task.cancel()

    def release(self) -> None:
        """Let the body end, or raise, when it next runs."""
        self.let_go = True
        if not self.go.done():  # its task might have been cancelled while it waited for this
            self.go.set_result(None)

    def settle(self) -> None:
        """Call this after the task has ended: a task cancelled before its start sets no ending."""
        assert self.task is not None
        if not self.ending:
            if not self.task.cancelled():
                raise Violation(f"{self} has ended without an ending: {self.task!r}")
            self.ending = "cancelled"
        elif not self.task.cancelled() and (error := self.task.exception()) is not None:
            raise Violation(f"{self} ended twice: {self.ending}, and then {error!r}")
        if self.ending == "timeout" and self.plan.timeout is None:
            raise Violation(f"{self} ran out of time, and had all of it")
        if self.ending == "cancelled" and not self.cancelled:
            raise Violation(f"{self} was cancelled, but by nobody")

    async def _run(self, queue: Queue) -> None:
        self.began = True
        plan = self.plan
        request = queue.slot(
            plan.queue_id, item_id=plan.item_id, max_concurrent=plan.limit, timeout=plan.timeout
        )
        try:
            async with request as self.slot:
                self.inside = True
                try:
                    await self.go
                    if plan.fails:
                        raise BodyFailed
                finally:
                    self.inside = False
            self._end("released")
        except BodyFailed:
            self._end("failed")
        except asyncio.CancelledError as error:
            # If it had failed at once before it was cancelled, that is how it is counted.
            failed = {
                QueueTimeoutError: "timeout",
                LimitMismatchError: "mismatch",
                BackendUnavailableError: "unavailable",
            }
            self._end(failed.get(type(error.__context__), "cancelled"))
        except QueueTimeoutError:
            self._end("timeout")
        except EvictedError:
            self._end("evicted")
        except LimitMismatchError:
            self._end("mismatch")
        except BackendUnavailableError:
            self._end("unavailable")

    def _end(self, how: str) -> None:
        if self.ending:
            raise Violation(f"{self} ended twice: {self.ending} and {how}")
        self.ending = how

    def __repr__(self) -> str:
        plan = self.plan
        return f"call {self.number} ({plan.item_id} in {plan.queue_id})"
