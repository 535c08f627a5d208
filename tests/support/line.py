"""Calls of one queue, with any options of `slot`."""

from __future__ import annotations

import asyncio
from typing import Any

from genesis import Queue
from genesis.queue.slot import Slot
from tests.support.waiting import wait_until

DAY = 86_400.0


class Call:
    """A task that enters a queue with any options of `slot`, and holds its slot until `gone`."""

    def __init__(self, queue: Queue, item_id: str, **options: Any) -> None:
        self.item_id = item_id
        self.request = queue.slot("sales", item_id=item_id, **options)
        self.slot: Slot | None = None
        self._go = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self.request as self.slot:
            await self._go.wait()

    async def gone(self) -> None:
        self._go.set()
        await self.task

    async def dropped(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})
        assert self.task.cancelled()


class Line:
    """The calls of one queue."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.calls: list[Call] = []

    async def call(self, item_id: str, **options: Any) -> Call:
        """Start a call, and return when it holds or waits."""
        call = Call(self.queue, item_id, **options)
        self.calls.append(call)
        await wait_until(
            lambda: call.slot or call.request.place_token or call.task.done(), f"{item_id} is there"
        )
        if call.task.done():
            await call.task
        return call

    async def waiting(self) -> list[str]:
        """The items that wait, in the order of the line."""
        entries = await self.queue.entries("sales")
        return [entry.item_id for entry in entries if entry.state == "waiting"]

    async def grants(self) -> list[str]:
        """Let all calls end one by one. Returns the items in the order of their grants."""
        for call in self.calls:
            call._go.set()
        done = [call for call in self.calls if not call.task.cancelled()]
        await asyncio.gather(*(call.task for call in done))
        done.sort(key=lambda call: call.slot.fencing_token if call.slot else 0)
        return [call.item_id for call in done]


async def learn_holds(queue: Queue, count: int = 10) -> float:
    """Make this many holds. Returns the queue's mean hold."""
    for _ in range(count):
        async with queue.slot("sales"):
            await asyncio.sleep(0.001)  # the duration of the hold
    mean: float | None = None

    async def known() -> bool:
        nonlocal mean
        mean = (await queue.stats("sales")).mean_hold
        return mean is not None

    await wait_until(known, "the mean hold is known")
    assert mean is not None
    return mean
