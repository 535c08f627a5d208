"""The expected wait, computed from the mean of recent holds.

Formula and mean are the same in every backend. Redis stores the mean as a count and a number in the
queue's hash; `lua/leave.lua` repeats `HoldMean.add` and `RECENT_HOLDS`, so change both together.
"""

from __future__ import annotations

from dataclasses import dataclass

FEWEST_HOLDS = 10
"""The mean is unknown until there are this many holds."""

RECENT_HOLDS = 100
"""The weight of the latest hold is at least one in this many; older holds fade out."""


@dataclass(slots=True)
class HoldMean:
    """The mean of all holds up to `RECENT_HOLDS`, after that exponentially weighted."""

    count: int = 0  # stops at RECENT_HOLDS
    mean: float = 0.0

    def add(self, hold: float) -> None:
        """Add a hold, in seconds."""
        if self.count < RECENT_HOLDS:
            self.count += 1
        self.mean += (hold - self.mean) / self.count

    @property
    def value(self) -> float | None:
        """Seconds; None while fewer than `FEWEST_HOLDS` are known."""
        return self.mean if self.count >= FEWEST_HOLDS else None


def expected_wait(position: int, limit: int, mean_hold: float | None) -> float | None:
    """Estimate the seconds until a waiter is granted a slot: position / limit * mean_hold.

    A waiter gets its slot when `position` holds have ended, and `limit` holds end per mean hold. The
    result is not rounded up to whole holds: holders did not all start at the same moment, so the next
    of ten slots comes free after a tenth of a hold. `tests/benchmarks/estimate.py` has the comparison.

    Args:
        position: 1 is next.
        limit: the limit in force.
        mean_hold: seconds, None if not known.

    Returns:
        Seconds; None if the mean is not known or the queue is paused.
    """
    if mean_hold is None or limit <= 0:
        return None
    return position / limit * mean_hold
