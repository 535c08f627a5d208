"""What a history records of one call, of an instance and of a queue."""

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


AT_ONCE = 0.12  # seconds for a hand-off between two processes without a fault
SLACK = 0.15  # seconds for round trips and timers, where the promise is a fraction of the lease
EARLY = 0.02  # seconds by which timers of two clocks can differ


@dataclass
class Passage:
    """One call's passage through its queue, as seen by its own process."""

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
    given_up: float | None = None  # when the reply to its `leave` came
    was: str | None = None  # its state in Redis when it gave up; None if unknown
    leaving: float | None = None
    lost: float | None = None  # when its slot.lost could first be true
    lost_noticed: float | None = None
    reason: str = ""
    evicted: float | None = None  # when the first eviction of it was sent
    surely_evicted: float | None = None  # when the reply to an eviction that found it came
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
        """The earliest proven end of its hold."""
        ends = (self.leaving, self.lost, self.evicted, self.killed, self.ended)
        return min((end for end in ends if end is not None), default=math.inf)

    @property
    def hold_end_seen(self) -> float:
        """The end of its body."""
        ends = (self.leaving, self.killed, self.ended)
        return min((end for end in ends if end is not None), default=math.inf)

    @property
    def slot_free(self) -> float:
        """When its slot should pass on. Its lease might have lapsed by its own clock, but not by
        Redis's: a lost slot stays lost, but is given back only at the end of the body."""
        evicted = None if self.surely_evicted is None else self.evicted
        ends = [self.leaving, evicted, self.killed, self.ended]
        if self.reason != "lapsed":
            ends.append(self.lost)
        return min((end for end in ends if end is not None), default=math.inf)

    @property
    def over(self) -> float:
        """When nothing of it is left."""
        ends = (self.killed, self.ended)
        return min((end for end in ends if end is not None), default=math.inf)

    @property
    def place_period(self) -> Period | None:
        """The period in which its place must lie; None if it took a kept place."""
        if self.resumed:
            return None
        known = (self.entered, self.granted, self.giving_up, self.ended)
        latest = min((at for at in known if at is not None), default=math.inf)
        return Period(self.invoked - self.head_start, latest - self.head_start)

    @property
    def listed(self) -> float:
        """When its instance's heartbeats start to include it."""
        if self.entered is not None:
            return self.entered
        return math.inf if self.granted is None else self.granted

    @property
    def wait_end(self) -> float:
        """Until when it certainly waited, unless evicted: its grant, or when it gave up."""
        return min(self.waits_end, math.inf if self.evicted is None else self.evicted)

    @property
    def waits_end(self) -> float:
        """Until when it waited as far as its process knew."""
        ends = (self.granted, self.giving_up, self.killed, self.ended)
        return min((end for end in ends if end is not None), default=math.inf)


class Contact:
    """What one instance knew about its lease in one queue."""

    def __init__(self) -> None:
        self.deadlines: list[tuple[float, float]] = []  # known at, holds until
        self.beats: list[tuple[float, float, int]] = []  # answered at, sent, unknown
        self.restored: list[float] = []

    def registered(self, sent_after: float) -> float:
        """When a reply to a request sent after `sent_after` showed that Redis has all its tickets."""
        for at, sent, unknown in self.beats[bisect_left(self.beats, (sent_after,)) :]:
            if sent >= sent_after:
                if not unknown:
                    return at
                later = bisect_left(self.restored, at)
                return self.restored[later] if later < len(self.restored) else math.inf
        return math.inf

    def lapses(self, since: float, until: float) -> Iterator[float]:
        """The times at which its lease lapsed before it learned of a renewal."""
        known = self.deadlines[max(0, bisect_right(self.deadlines, (since, math.inf)) - 1) :]
        renewals = [at for at, _ in known[1:]] + [math.inf]
        for (_, deadline), following in zip(known, renewals, strict=True):
            if deadline > until:
                return
            if following > max(deadline, since):
                yield deadline


class Setting(NamedTuple):
    value: int
    begin: float
    end: float  # when its reply came; infinity if none came
    sure: bool = False  # it was certainly applied


class Eviction(NamedTuple):
    who: str
    call: str
    at: float
    answered: float = math.inf
    found: int | None = None


class Registration(NamedTuple):
    """A sync whose reply reported that Redis had lost its data."""

    queue: str
    at: float  # when its reply came
    redis: float  # Redis's time, us
