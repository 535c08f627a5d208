"""A load of calls on several instances and queues, and checks of limit and order."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from genesis import Queue
from tests.support.waiting import wait_until

__all__ = ["Excess", "Load"]


class Excess(NamedTuple):
    """More calls than the limit held a slot."""

    queue_id: str
    began: float
    ended: float
    most: int


class Load:
    """Callers that enter, hold for some milliseconds, leave and repeat, until `stop`.

    Args:
        instances: each has `callers` callers in every queue.
        limit: of every queue.

    Attributes:
        done: calls that held a slot and left.
        failed: errors of calls.
        lost: calls whose slot was lost while they held it.
        excesses: times at which more calls than the limit held a slot.
        grants: the time of each grant, by the monotonic clock.
    """

    def __init__(
        self, instances: Sequence[Queue], queue_ids: Sequence[str], limit: int = 2, callers: int = 3
    ) -> None:
        self._limit = limit
        self.done = 0
        self.failed: list[BaseException] = []
        self.lost = 0
        self.excesses: list[Excess] = []
        self.grants: list[float] = []
        self._inside: dict[str, int] = defaultdict(int)
        self._over: dict[str, tuple[float, int]] = {}
        self._tokens: dict[tuple[int, str], dict[int, int]] = defaultdict(dict)
        self._stopped = False
        self._serial = 0
        self._tasks = [
            asyncio.create_task(self._caller(number, queue, queue_id))
            for number, queue in enumerate(instances)
            for queue_id in queue_ids
            for _ in range(callers)
        ]

    @property
    def inversions(self) -> int:
        """The number of grants to a call before one that its instance had entered earlier."""
        found = 0
        for tokens in self._tokens.values():
            in_order_of_entering = [tokens[serial] for serial in sorted(tokens)]
            found += sum(a >= b for a, b in itertools.pairwise(in_order_of_entering))
        return found

    def since(self, when: float) -> int:
        """The number of grants since then."""
        return sum(at > when for at in self.grants)

    def longest_gap(self, begin: float) -> float:
        """The longest time after `begin` without a grant, in seconds."""
        times = [begin, *(at for at in self.grants if at > begin)]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    async def served(self, calls: int, description: str, timeout: float = 20.0) -> float:
        """Wait until this many more calls are served. Returns the seconds that took."""
        target = self.done + calls
        return await wait_until(lambda: self.done >= target, description, timeout)

    async def stop(self, timeout: float = 20.0) -> None:
        """Stop entering, and wait until all calls have left; a call that does not is stuck."""
        self._stopped = True
        await wait_until(lambda: all(task.done() for task in self._tasks), "nobody is stuck", timeout)
        await asyncio.gather(*self._tasks)

    async def _caller(self, number: int, queue: Queue, queue_id: str) -> None:
        while not self._stopped:
            self._serial += 1
            serial = self._serial
            try:
                async with queue.slot(
                    queue_id, item_id=f"call-{serial}", max_concurrent=self._limit
                ) as slot:
                    self._tokens[number, queue_id][serial] = slot.fencing_token
                    self._enter(queue_id)
                    try:
                        await asyncio.sleep(random.uniform(0.001, 0.008))
                        self.lost += slot.lost
                    finally:
                        self._leave(queue_id)
                self.done += 1
            except Exception as error:
                self.failed.append(error)
                return  # this caller stops; the others continue

    def _enter(self, queue_id: str) -> None:
        now = time.monotonic()
        self.grants.append(now)
        self._inside[queue_id] += 1
        inside = self._inside[queue_id]
        if inside > self._limit:
            began, most = self._over.get(queue_id, (now, 0))
            self._over[queue_id] = (began, max(most, inside))

    def _leave(self, queue_id: str) -> None:
        self._inside[queue_id] -= 1
        if self._inside[queue_id] <= self._limit and queue_id in self._over:
            began, most = self._over.pop(queue_id)
            self.excesses.append(Excess(queue_id, began, time.monotonic(), most))
