"""The events of a schedule. The schedule decides their order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

__all__ = ["Admin", "CallPlan", "SMALL", "TINY", "Scenario", "drawn"]


T = TypeVar("T")

_ADMINS = ("set_limit",) * 4 + ("evict",) * 8 + ("close", "stats", "entries", "position")


@dataclass(frozen=True)
class CallPlan:
    """One call."""

    queue_id: str
    item_id: str
    limit: int | None = None
    timeout: float | None = None
    cancels: int = 0
    """How often its task is cancelled, at any step; more than once: also while it is ending."""
    fails: bool = False
    """Its body ends with an error."""


@dataclass(frozen=True)
class Admin:
    """An operator's action: set_limit, evict, close, stats, entries or position."""

    what: str
    queue_id: str = ""
    limit: int | None = None
    item_id: str = ""
    """The item; empty for a present one, which the schedule picks."""


@dataclass(frozen=True)
class Scenario:
    calls: tuple[CallPlan, ...]
    admins: tuple[Admin, ...] = ()
    timers: int = 0
    """The maximum number of timers that fire before the end."""
    pace: float = field(default=0.6, compare=False)
    """The probability that the next step is a ready callback, not an external event."""

    @property
    def patient(self) -> bool:
        """Bodies end only when all calls have started, so that a line forms."""
        return self.pace < 0.5


def drawn(seed: int | str) -> Scenario:
    """A small random scenario: 2 to 6 calls in 1 or 2 queues with limits of 1 or 2, and events."""
    chance = random.Random(f"scenario {seed}").random

    def one_of(these: Sequence[T]) -> T:
        return these[int(chance() * len(these))]

    names = one_of((("q",), ("q",), ("q", "r")))
    limits = {name: one_of((None, 1, 1, 2)) for name in names}
    calls = []
    for number in range(one_of((2, 3, 4, 5, 6))):
        queue_id = one_of(names)
        patience = chance()
        calls.append(
            CallPlan(
                queue_id,
                # sometimes several calls bear one name
                f"c{one_of((0, 1, 2))}" if chance() < 0.15 else f"c{number}",
                # sometimes a call site disagrees, or has no opinion
                one_of((None, 1, 2, 3)) if chance() < 0.1 else limits[queue_id],
                0.0 if patience < 0.1 else 1 + int(patience * 10) / 4 if patience < 0.5 else None,
                one_of((0, 0, 0, 0, 0, 1, 1, 2)),
                chance() < 0.1,
            )
        )
    admins = []
    for _ in range(one_of((0, 0, 1, 1, 2, 3))):
        limit = one_of((None, 0, 1, 2, 3))
        admins.append(Admin(one_of(_ADMINS), one_of(names), limit))
    return Scenario(
        tuple(calls),
        tuple(admins),
        int(chance() * 5) if chance() < 0.7 else 0,
        one_of((0.35, 0.6, 0.85)),
    )


_A, _B, _C = (CallPlan("q", f"c{n}", 1) for n in range(3))

# Small enough to enumerate every order of their steps.
TINY = {
    "a waiter is cancelled while it is granted": Scenario((_A, replace(_B, cancels=1))),
    "a waiter is cancelled twice": Scenario((_A, replace(_B, cancels=2))),
    "a waiter's time runs out while it is granted": Scenario((_A, replace(_B, timeout=1.0)), timers=1),
    "a waiter is cancelled and its time runs out": Scenario(
        (_A, replace(_B, timeout=1.0, cancels=1)), timers=1
    ),
    "a holder is cancelled": Scenario((replace(_A, cancels=1), _B)),
    "a waiter is evicted while it is granted": Scenario((_A, _B), (Admin("evict", "q", item_id="c1"),)),
    "the limit is raised while a waiter is cancelled": Scenario(
        (_A, replace(_B, cancels=1)), (Admin("set_limit", "q", 2),)
    ),
    "the queue is closed while a waiter is granted": Scenario((_A, _B), (Admin("close"),)),
    "two waiters, the head is cancelled": Scenario((_A, replace(_B, cancels=1), _C)),
    "a waiter is cancelled and evicted": Scenario(
        (_A, replace(_B, cancels=1)), (Admin("evict", "q", item_id="c1"),)
    ),
}

# For these, only the orders that asyncio allows can be enumerated in reasonable time.
SMALL = {
    "two waiters, both are cancelled": Scenario((_A, replace(_B, cancels=1), replace(_C, cancels=1))),
    "two waiters, the head is cancelled, the other's time runs out": Scenario(
        (_A, replace(_B, cancels=1), replace(_C, timeout=1.0)), timers=1
    ),
    "two slots, a holder and a waiter are cancelled": Scenario(
        (replace(_A, limit=2), replace(_B, limit=2, cancels=1), replace(_C, limit=2, cancels=1))
    ),
    "the queue is paused and goes on": Scenario(
        (_A, _B), (Admin("set_limit", "q", 0), Admin("set_limit", "q", None))
    ),
}
