"""Periods of time, and faults as the checker sees them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["ALWAYS", "RECONNECT", "Disturbance", "Period", "prolong_reconnects", "subtract"]

RECONNECT = 1.2  # seconds for a reconnect, which is attempted at least every second
_STEADY = 1.0  # seconds up after which a link reconnects at once, see link.py
_BREAK = {"cut", "client-kill", "script-flush", "requests-lost", "replies-lost", "half-open"}


class Period(NamedTuple):
    begin: float
    end: float

    def meets(self, other: Period) -> bool:
        return self.begin <= other.end and other.begin <= self.end


ALWAYS = Period(-math.inf, math.inf)


class Disturbance(NamedTuple):
    """A fault, from its start until its documented effects are over."""

    name: str
    target: str  # a worker; '' for everybody
    period: Period


def prolong_reconnects(disturbances: Iterable[Disturbance]) -> list[Disturbance]:
    """Extend faults by the backoff of a link that has failed just before.

    If a connection ends less than a second after it was opened, the link waits for up to a second
    before it reconnects. Of two consecutive faults that close it, the second therefore lasts longer.
    """
    found: list[Disturbance] = []
    for one in sorted(disturbances, key=lambda disturbance: disturbance.period.begin):
        begin, end = one.period
        before = Period(begin - _STEADY, begin)
        hasty = one.name in _BREAK and any(
            other.period.meets(before) and (not one.target or other.target in ("", one.target))
            for other in found
        )
        found.append(one._replace(period=Period(begin, end + RECONNECT)) if hasty else one)
    return found


def subtract(period: Period, holes: Iterable[Period]) -> list[Period]:
    """The parts of `period` outside `holes`."""
    left = [period]
    for hole in holes:
        left = [
            part
            for piece in left
            for part in (
                Period(piece.begin, min(piece.end, hole.begin)),
                Period(max(piece.begin, hole.end), piece.end),
            )
            if part.begin < part.end
        ]
    return left
