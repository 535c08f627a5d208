"""Calls of one queue, each in its own task, for the contract tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest

from genesis import Queue, QueueTimeoutError
from genesis.backends import waiting
from genesis.backends.protocol import Grant
from genesis.queue.slot import Slot
from tests.support.waiting import wait_until


class Call:
    """A task that enters a queue and holds its slot until `go` or `gone`."""

    def __init__(
        self, group: CallGroup, item_id: str, limit: int | None = 1, timeout: float | None = None
    ) -> None:
        self.item_id = item_id
        self.slot: Slot | None = None
        self._group = group
        self._go = asyncio.Event()
        self.task = asyncio.create_task(self._run(limit, timeout))

    async def _run(self, limit: int | None, timeout: float | None) -> None:
        group = self._group
        request = group.queue.slot(
            group.queue_id, item_id=self.item_id, max_concurrent=limit, timeout=timeout
        )
        async with request as self.slot:
            group.entered.append(self.item_id)
            group.inside += 1
            group.most = max(group.most, group.inside)
            try:
                await self._go.wait()
            finally:
                group.inside -= 1

    def go(self) -> None:
        """Let the body end in the next iteration of the loop."""
        self._go.set()

    async def gone(self) -> None:
        """Let the body end, and wait until the slot is given back."""
        self._go.set()
        await self.task


class CallGroup:
    """The calls of one queue, and the order in which their bodies started."""

    def __init__(self, queue: Queue, queue_id: str = "sales") -> None:
        self.queue = queue
        self.queue_id = queue_id
        self.calls: list[Call] = []
        self.entered: list[str] = []  # item_ids, in the order in which the bodies began
        self.inside = 0
        self.most = 0

    def call(self, item_id: str, limit: int | None = 1, timeout: float | None = None) -> Call:
        self.calls.append(Call(self, item_id, limit, timeout))
        return self.calls[-1]

    async def line_up(self, *item_ids: str, limit: int | None = 1) -> list[Call]:
        """Start calls in this order, and return when each of them waits or holds."""
        stats = await self.queue.stats(self.queue_id)
        expected = stats.waiting + stats.in_use + len(item_ids)
        calls = [self.call(item_id, limit) for item_id in item_ids]

        async def all_in_line() -> bool:
            stats = await self.queue.stats(self.queue_id)
            return stats.waiting + stats.in_use == expected and self.inside == stats.in_use

        await wait_until(all_in_line, f"{expected} calls wait or hold")
        return calls

    async def until_entered(self, *item_ids: str) -> None:
        """Wait until this many have been granted; check which ones, and in which order."""
        await wait_until(
            lambda: len(self.entered) >= len(item_ids), f"{item_ids} entered, not {self.entered}"
        )
        assert self.entered == list(item_ids)

    async def counts(self) -> tuple[int, int]:
        """Waiting and in use, by `stats`."""
        stats = await self.queue.stats(self.queue_id)
        return stats.waiting, stats.in_use


class Waits:
    """Intercepts the waits for a grant, to act between a grant and the wake-up of its task."""

    def __init__(self) -> None:
        self.futures: list[asyncio.Future[Grant]] = []  # in the order in which the waits began
        self.on_grant: Callable[[asyncio.Task[Any]], object] | None = None
        self.cancelled_after_grant = 0

    def cancel_at_grant(self, call: Call) -> None:
        def cancel(task: asyncio.Task[Any]) -> None:
            if task is call.task:
                task.cancel()

        self.on_grant = cancel

    def _ended(self, task: asyncio.Task[Any], future: asyncio.Future[Grant]) -> None:
        if self.on_grant is not None and _granted(future):
            self.on_grant(task)

    async def until_granted(self, future: asyncio.Future[Grant], timeout: float | None) -> Grant:
        task = asyncio.current_task()
        assert task is not None
        self.futures.append(future)
        # Added before the task's own wake-up, so it runs first, in the same iteration of the loop.
        future.add_done_callback(partial(self._ended, task))
        try:
            return await waiting.until_granted(future, timeout)
        except asyncio.CancelledError:
            self.cancelled_after_grant += _granted(future)
            raise


def _granted(future: asyncio.Future[Grant]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


async def assert_free(queue: Queue, queue_id: str, slots: int) -> None:
    """Check that exactly `slots` slots are free and no call waits."""
    async with AsyncExitStack() as stack:
        for number in range(slots):
            request = queue.slot(queue_id, item_id=f"probe {number}", max_concurrent=slots, timeout=0)
            await stack.enter_async_context(request)
        with pytest.raises(QueueTimeoutError):
            await stack.enter_async_context(queue.slot(queue_id, max_concurrent=slots, timeout=0))
        assert (await queue.stats(queue_id))[:2] == (0, slots)
