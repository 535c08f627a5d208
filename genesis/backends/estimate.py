"""The expected wait, from the mean of recent holds.

The formula and the mean are the same in every backend; in Redis the mean is a count and a number in the
queue's hash. `lua/leave.lua` repeats the rule of `HoldMean.add` and `RECENT_HOLDS`: change both.
"""

from __future__ import annotations

__all__ = ["FEWEST_HOLDS", "RECENT_HOLDS", "HoldMean", "expected_wait"]

FEWEST_HOLDS = 10
"""With fewer holds than this, the mean is not known."""

RECENT_HOLDS = 100
"""A hold counts as much as one of so many; older holds count less and less."""


class HoldMean:
    """The mean of recent holds: of all, then, after `RECENT_HOLDS`, exponentially weighted."""

    __slots__ = ("count", "mean")

    def __init__(self) -> None:
        self.count = 0  # stops at RECENT_HOLDS
        self.mean = 0.0

    def add(self, hold: float) -> None:
        """Take in a hold of so many seconds."""
        if self.count < RECENT_HOLDS:
            self.count += 1
        self.mean += (hold - self.mean) / self.count

    @property
    def value(self) -> float | None:
        """Seconds; None while fewer than `FEWEST_HOLDS` are known."""
        return self.mean if self.count >= FEWEST_HOLDS else None


def expected_wait(position: int, limit: int, mean_hold: float | None) -> float | None:
    """Seconds until the grant of a waiter.

    Its slot comes free when `position` holds have ended, and `limit` holds end per mean hold. That is
    not rounded up to whole holds: the holders did not all begin at the same moment, so the next of ten
    slots comes free after a tenth of a hold. `tests/benchmarks/estimate.py` has the comparison.

    Args:
        position: 1 is next.
        limit: the limit in force.
        mean_hold: seconds, None if not known.

    Returns:
        None if the mean is not known, or the queue is paused.
    """
    if mean_hold is None or limit <= 0:
        return None
    return position / limit * mean_hold
