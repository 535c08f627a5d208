"""One call's way through its queue, and what else a history has of an instance or a queue."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.campaign.periods import (
    ALWAYS,
    Period,
)

__all__ = ["AT_ONCE", "Contact", "EARLY", "Eviction", "Passage", "Registration", "SLACK", "Setting"]


AT_ONCE = 0.12  # seconds for a hand-off between two processes while nothing is wrong
SLACK = 0.15  # seconds for round trips and timers, where the promise is a share of the lease
EARLY = 0.02  # seconds by which timers of two clocks' reading may differ


@dataclass
class Passage:
    """One call's way through its queue, as its own process saw it."""

    call: str
    queue: str
    who: str
    invoked: float
    timeout: float | None
    entered: float | None = None
    place: int | None = None
    granted: float | None = None
    token: int = 0
    giving_up: float | None = None
    given_up: float | None = None  # when the reply to its leaving the line came
    was: str | None = None  # what Redis said that it had when it gave up; None if that is unknown
    leaving: float | None = None
    lost: float | None = None  # when its slot.lost could first be true
    lost_noticed: float | None = None
    reason: str = ""
    evicted: float | None = None  # when somebody first set out to evict it
    surely_evicted: float | None = None  # when an eviction that found it was answered
    killed: float | None = None
    ended: float | None = None
    how: str = ""
    head_start: float = 0.0
    max_waiting: int | None = None
    place_of: str = ""  # whose kept place it asks for
    resumed: bool = False
    keep: float = 0.0  # seconds for which its place is to be kept
    events: list[str] = field(default_factory=list)
    taken: Period = field(default=ALWAYS)  # in which its grant took effect in Redis

    @property
    def hold_end(self) -> float:
        """Until when it held, at the least that can be proven."""
        ends = (self.leaving, self.lost, self.evicted, self.killed, self.ended)
        return min((end for end in ends if end is not None), default=math.inf)

    @property
    def hold_end_seen(self) -> float:
        """Until when its body ran."""
        ends = (self.leaving, self.killed, self.ended)
        return min((end for end in ends if end is not None), default=math.inf)

    @property
    def slot_free(self) -> float:
        """From when on its slot should be another's. A lease that lapsed by its own reckoning may
        not have by Redis': what is lost stays lost, but is given back only when the body is over."""
        ends = [self.leaving, self.evicted, self.killed, self.ended]
        if self.reason != "lapsed":
            ends.append(self.lost)
        return min((end for end in ends if end is not None), default=math.inf)

    @property
    def over(self) -> float:
        """From when on nothing of it is there any more."""
        ends = (self.killed, self.ended)
        return min((end for end in ends if end is not None), default=math.inf)

    @property
    def place_period(self) -> Period | None:
        """In which its place must lie, as a time of entering; None if it took a kept one."""
        if self.resumed:
            return None
        known = (self.entered, self.granted, self.giving_up, self.ended)
        latest = min((at for at in known if at is not None), default=math.inf)
        return Period(self.invoked - self.head_start, latest - self.head_start)

    @property
    def listed(self) -> float:
        """From when on its instance's heartbeats name it: those before say nothing about it."""
        if self.entered is not None:
            return self.entered
        return math.inf if self.granted is None else self.granted

    @property
    def wait_end(self) -> float:
        """Until when it was in line for certain, if nobody took it out: granted, or gave up."""
        return min(self.waits_end, math.inf if self.evicted is None else self.evicted)

    @property
    def waits_end(self) -> float:
        """Until when it waited as far as it knew itself."""
        ends = (self.granted, self.giving_up, self.killed, self.ended)
        return min((end for end in ends if end is not None), default=math.inf)


class Contact:
    """What one instance knew of its lease in one queue."""

    def __init__(self) -> None:
        self.fences: list[tuple[float, float]] = []  # known at, holds until
        self.beats: list[tuple[float, float, int]] = []  # answered at, sent, unknown
        self.restored: list[float] = []

    def registered(self, sent_after: float) -> float:
        """When it first knew that all it has is in Redis, asked after `sent_after`."""
        for at, sent, unknown in self.beats[bisect_left(self.beats, (sent_after,)) :]:
            if sent >= sent_after:
                if not unknown:
                    return at
                later = bisect_left(self.restored, at)
                return self.restored[later] if later < len(self.restored) else math.inf
        return math.inf

    def lapses(self, since: float, until: float) -> Iterator[float]:
        """When its lease ran out before it heard of a renewal; or had, when it first heard of it."""
        known = self.fences[max(0, bisect_right(self.fences, (since, math.inf)) - 1) :]
        heard = [at for at, _ in known[1:]] + [math.inf]
        for (_, fence), following in zip(known, heard, strict=True):
            if fence > until:
                return
            if following > max(fence, since):
                yield fence


class Setting(NamedTuple):
    value: int
    begin: float
    end: float  # of its answer; infinity if there is none
    sure: bool = False  # it was carried out


class Eviction(NamedTuple):
    who: str
    call: str
    at: float
    answered: float = math.inf
    found: int | None = None


class Registration(NamedTuple):
    """A sync by which an instance noticed that Redis had lost its data."""

    queue: str
    at: float  # when it was answered
    redis: float  # Redis's time, us
