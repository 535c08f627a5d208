"""Stretches of time, and faults as the checker sees them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["ALWAYS", "RECONNECT", "Disturbance", "Period", "prolong_reconnects", "subtract"]

RECONNECT = 1.2  # seconds for a connection to be made anew, tried at least every second
_STEADY = 1.0  # seconds up after which a link reconnects at once, see link.py
_BREAK = {"cut", "client-kill", "script-flush", "requests-lost", "replies-lost", "half-open"}


class Period(NamedTuple):
    begin: float
    end: float

    def meets(self, other: Period) -> bool:
        return self.begin <= other.end and other.begin <= self.end


ALWAYS = Period(-math.inf, math.inf)


class Disturbance(NamedTuple):
    """A fault, from its begin until all that it may cause is over, by what is documented."""

    name: str
    target: str  # a worker; '' for everybody
    period: Period


def prolong_reconnects(disturbances: Iterable[Disturbance]) -> list[Disturbance]:
    """Faults with the time that a link takes which has failed just before.

    A connection that ends less than a second after it was made is made again only after a pause of up
    to a second, so of two faults that break it, one after the other, the second is felt for longer.
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
    """What is left of `period` outside of `holes`."""
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
