"""The bounds: which calls, which faults. The fast ones fit into the fast test suite."""

from __future__ import annotations

from tests.protocol.caller import Call
from tests.protocol.world import Bound, Faults

__all__ = ["ALL", "FAST"]

A1, B1 = Call("a1", 0), Call("b1", 1)
TWO = (A1, B1)
THREE = (A1, Call("a2", 0), B1)
F = Faults
FAST = [
    Bound("two calls, no fault", TWO),
    Bound("two calls, a break", TWO, F(breaks=1)),
    Bound("two calls, a kill", TWO, F(kills=1)),
    Bound("two calls, a lapse", TWO, F(lapses=1)),
    Bound("two calls, an eviction", TWO, F(evictions=1)),
    Bound("two calls, a loss", TWO, F(losses=1)),
    Bound("three calls, no fault", THREE),
]
ALL: list[Bound] = []
