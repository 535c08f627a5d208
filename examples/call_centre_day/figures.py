"""What an ideal line would do with a day, and the figures by which call centres are compared."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from examples.call_centre_day.day import Call, Day, Outcome

SERVICE_LEVEL = 20.0  # seconds of the day within which a call should be answered


def ideal_outcomes(day: Day) -> tuple[list[Outcome], float]:
    """The outcomes in a first come, first served line without delay, and when the last call ends."""
    # The second field orders what happens at the same time: the limit changes, talks end, calls enter,
    # and callers hang up last.
    limit_changes, talk_ends, call_enters, caller_hangs_up = range(4)
    happenings: list[tuple[float, int, int]] = []
    happenings += [(change.at, limit_changes, change.agents) for change in day.limits]
    happenings += [(call.entered, call_enters, number) for number, call in enumerate(day.calls)]
    heapq.heapify(happenings)
    outcomes: list[Outcome] = []
    waiting: dict[int, Call] = {}
    agents = talking = 0
    end = day.start
    while happenings:
        now, kind, number = heapq.heappop(happenings)
        if kind == limit_changes:
            agents = number
        elif kind == talk_ends:
            talking -= 1
            end = now
        elif kind == call_enters:
            call = waiting[number] = day.calls[number]
            if call.patience is not None:
                heapq.heappush(happenings, (now + call.patience, caller_hangs_up, number))
        elif number in waiting:
            call = waiting.pop(number)
            outcomes.append(Outcome(call.entered, now - call.entered, answered=False))
            end = now
        while waiting and talking < agents:
            call = waiting.pop(next(iter(waiting)))
            talking += 1
            outcomes.append(Outcome(call.entered, now - call.entered, answered=True))
            heapq.heappush(happenings, (now + call.talk, talk_ends, 0))
    return outcomes, end


@dataclass(frozen=True)
class Figures:
    """Times are seconds of the day; levels are shares of 1."""

    answered: int
    abandoned: int
    speed_of_answer: float
    """The mean wait of the answered calls."""
    strict_level: float
    """Calls answered within 20 s, of all calls."""
    lenient_level: float
    """The same, of all calls except those that hung up within 20 s."""
    depth: int
    """The greatest number of calls that waited at once."""

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Figures:
        waits = [o.waited for o in outcomes if o.answered]
        soon = sum(wait <= SERVICE_LEVEL for wait in waits)
        hung_up_soon = sum(not o.answered and o.waited <= SERVICE_LEVEL for o in outcomes)
        steps = [(o.entered, 1) for o in outcomes if o.waited > 0]
        steps += [(o.entered + o.waited, -1) for o in outcomes if o.waited > 0]
        depths = itertools.accumulate(step for _, step in sorted(steps))
        return cls(
            answered=len(waits),
            abandoned=len(outcomes) - len(waits),
            speed_of_answer=sum(waits) / max(1, len(waits)),
            strict_level=soon / max(1, len(outcomes)),
            lenient_level=soon / max(1, len(outcomes) - hung_up_soon),
            depth=max(depths, default=0),
        )
