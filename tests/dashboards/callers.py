"""Callers of the example's instances: they call, wait, talk and hang up."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from tests.support.example_instance import ExampleInstance

__all__ = ["Callers"]


class Callers:
    """Calls in progress, each a task; cancelled, it hangs up."""

    def __init__(self) -> None:
        self._calls: set[asyncio.Task[Any]] = set()
        self._serial = itertools.count(1)

    def call(self, instance: ExampleInstance, queue: str, seconds: float) -> asyncio.Task[Any]:
        """One caller, who talks for so many seconds. An instance that is not there ends the call."""
        path = f"/call/item-{next(self._serial)}?queue={queue.replace(' ', '%20')}&seconds={seconds:g}"

        async def caller() -> None:
            with suppress(OSError):
                await instance.get(path)

        return self._keep(caller())

    def every(
        self, seconds: float, instance: ExampleInstance, queue: str, talk: float
    ) -> asyncio.Task[Any]:
        """A new caller every so many seconds; they all hang up when this is hung up."""
        return self.arrivals([instance], queue, lambda: seconds, lambda: talk)

    def at_random(
        self,
        instances: Sequence[ExampleInstance],
        queue: str,
        between: float,
        talk: float,
        seed: int,
    ) -> asyncio.Task[Any]:
        """Callers who come and talk at random, with these mean times in seconds."""
        dice = random.Random(seed)
        return self.arrivals(
            instances, queue, lambda: dice.expovariate(1 / between), lambda: dice.expovariate(1 / talk)
        )

    def arrivals(
        self,
        instances: Sequence[ExampleInstance],
        queue: str,
        between: Callable[[], float],
        talk: Callable[[], float],
    ) -> asyncio.Task[Any]:
        """Callers of the instances in turn."""

        async def callers() -> None:
            calls = []
            try:
                for instance in itertools.cycle(instances):
                    calls.append(self.call(instance, queue, talk()))
                    await asyncio.sleep(between())  # the rate of arrivals
            finally:
                for each in calls:
                    each.cancel()

        return self._keep(callers())

    async def hang_up(self, *callers: asyncio.Task[Any]) -> None:
        for each in callers:
            each.cancel()
        await asyncio.gather(*callers, return_exceptions=True)

    async def hang_up_all(self) -> None:
        while self._calls:
            await self.hang_up(*self._calls)

    def _keep(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return task
