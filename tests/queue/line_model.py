"""A small model of one queue: what the property test compares a `Queue` with.

It knows nothing of tasks, messages or scripts: it has lists of waiters and holders, and two limits.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from genesis.queue.request import SlotRequest
from genesis.queue.slot import Slot

__all__ = ["Call", "Model"]


@dataclass(eq=False)
class Call:
    """One task, and its ticket in the model: `number` is its place in the order of entering."""

    number: int
    item_id: str
    limit: int | None
    instance: int
    head_start: int = 0  # hours; entering takes no time beside them
    place: tuple[int, int] = (0, 0)  # by which the line is ordered
    go: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    slot: Slot | None = None
    request: SlotRequest | None = None

    def __repr__(self) -> str:
        return f"{self.item_id}{self.number}"


class Model:
    """The expected state of the queue."""

    def __init__(self) -> None:
        self.waiting: list[Call] = []
        self.holding: list[Call] = []
        self.override: int | None = None
        self.named: int | None = None  # the limit that a call site named last
        self.grants: list[Call] = []
        self.kept: list[Call] = []  # calls that left a place, which can be taken again

    @property
    def limit(self) -> int:
        return self.override if self.override is not None else self.named or 1

    def enter(self, call: Call) -> None:
        if call.limit is not None:
            self.named = call.limit
        self._grant()
        self.waiting.append(call)
        self.waiting.sort(key=lambda call: call.place)
        self._grant()

    def would_refuse(self, limit: int | None) -> bool:
        """Whether timeout=0 finds no slot, after the newcomer's limit has taken effect."""
        number = self.override if self.override is not None else limit or self.named or 1
        return len(self.holding) + len(self.waiting) >= number

    def would_be_full(self, limit: int | None, most: int) -> bool:
        """Whether max_waiting refuses a newcomer, after its limit has taken effect."""
        number = self.override if self.override is not None else limit or self.named or 1
        waiting = max(0, len(self.waiting) - max(0, number - len(self.holding)))
        return self.would_refuse(limit) and waiting >= most

    def refuse(self, limit: int | None) -> None:
        if limit is not None:
            self.named = limit
        self._grant()
        self._forget()

    def remove(self, *calls: Call) -> None:
        for call in calls:
            if call in self.waiting:
                self.waiting.remove(call)
        for call in calls:
            if call in self.holding:
                self.holding.remove(call)
        self._grant()
        self._forget()

    def set_limit(self, limit: int | None) -> None:
        self.override = limit
        self._grant()

    def _grant(self) -> None:
        while self.waiting and len(self.holding) < self.limit:
            call = self.waiting.pop(0)
            self.holding.append(call)
            self.grants.append(call)

    def _forget(self) -> None:
        if not self.waiting and not self.holding:
            self.named = None
