"""How good the expected wait is, on a real day: `python -m tests.benchmarks.estimate bank-day.csv`.

The day's arrivals and talk times are replayed through a FIFO line. Its limit is the number of agents
on duty: from the first call of an agent to the end of the last one. Callers that hung up in the line do
so again after the same time. At every entry and every 30 s of a wait, the estimate is compared with
what the wait turned out to be.
"""

from __future__ import annotations

import csv
import heapq
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median, quantiles
from typing import NamedTuple

from genesis.backends.estimate import HoldMean, expected_wait

EVERY = 30.0  # seconds


class Arrival(NamedTuple):
    at: float
    talks: float
    patience: float | None
    """Seconds after which it hung up; None if it was answered."""


class State(NamedTuple):
    """What an estimate may know."""

    position: int
    limit: int
    waited: float
    holds: HoldMean
    waits: HoldMean


def ours(state: State) -> float | None:
    return expected_wait(state.position, state.limit, state.holds.value)


def plain(state: State) -> float | None:
    """Position times the mean hold, by the limit, rounded up to whole holds."""
    hold = state.holds.value
    return None if hold is None else -(-state.position // state.limit) * hold


def asterisk(state: State) -> float | None:
    """app_queue: the mean wait (there called holdtime; weighted 3/4, 1/4) less the time waited."""
    wait = state.waits.value
    return None if wait is None else max(0.0, wait - state.waited)


ESTIMATES: dict[str, Callable[[State], float | None]] = {
    "genesis": ours,
    "ceil(position / limit) x mean hold": plain,
    "Asterisk: mean wait - waited": asterisk,
}


class Weighted(HoldMean):
    """As Asterisk's app_queue has it: three parts old, one part new."""

    def add(self, hold: float) -> None:
        self.count += 1
        self.mean = hold if self.count == 1 else (3 * self.mean + hold) / 4


def read(path: str) -> tuple[list[Arrival], Callable[[float], int]]:
    """The calls, and the limit at a time of day."""
    arrivals: list[Arrival] = []
    duty: dict[str, tuple[float, float]] = {}
    with Path(path).open(newline="") as file:
        for row in csv.DictReader(file):
            entered, waited = float(row["entered_s"]), float(row["waited_s"])
            if row["outcome"] != "answered":
                arrivals.append(Arrival(entered, 0.0, waited))
                continue
            talked = float(row["talked_s"])
            arrivals.append(Arrival(entered, talked, None))
            if row["agent"]:
                begun = entered + waited
                first, last = duty.get(row["agent"], (begun, begun))
                duty[row["agent"]] = (min(first, begun), max(last, begun + talked))

    def limit(now: float) -> int:
        return max(1, sum(first <= now <= last for first, last in duty.values()))

    return sorted(arrivals, key=lambda arrival: arrival.at), limit


def replay(
    arrivals: list[Arrival], limit_at: Callable[[float], int]
) -> dict[str, list[tuple[float, float]]]:
    """(estimate, truth) of every look, by estimate."""
    holds, waits = HoldMean(), Weighted()
    line: deque[tuple[float, Arrival, list[tuple[float, dict[str, float | None]]]]] = deque()
    ends: list[tuple[float, float]] = []
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in ESTIMATES}
    events: list[tuple[float, int, int]] = [(a.at, 1, n) for n, a in enumerate(arrivals)]
    first, last = arrivals[0].at, arrivals[-1].at + 3 * 3600
    events += [(first + EVERY * n, 2, 0) for n in range(int((last - first) / EVERY))]
    heapq.heapify(events)
    limits: dict[int, int] = {}

    def limit(now: float) -> int:
        key = int(now // EVERY)
        if key not in limits:
            limits[key] = limit_at(now)
        return limits[key]

    def look(now: float, position: int) -> None:
        entered, _, looks = line[position - 1]
        state = State(position, limit(now), now - entered, holds, waits)
        looks.append((now, {name: estimate(state) for name, estimate in ESTIMATES.items()}))

    def grant(now: float) -> None:
        while line and len(ends) < limit(now):
            entered, arrival, looks = line.popleft()
            if arrival.patience is not None:
                continue  # how long it would have talked is not known
            heapq.heappush(ends, (now + arrival.talks, arrival.talks))
            heapq.heappush(events, (now + arrival.talks, 0, 0))
            waits.add(now - entered)
            for when, told in looks:
                if None not in told.values():
                    for name, value in told.items():
                        pairs[name].append((value or 0.0, now - when))

    while events:
        now, kind, number = heapq.heappop(events)
        gone = [w for w in line if w[1].patience is not None and now - w[0] > w[1].patience]
        for waiter in gone:
            line.remove(waiter)
        if kind == 0:
            holds.add(heapq.heappop(ends)[1])
        elif kind == 1:
            if line or len(ends) >= limit(now):
                line.append((now, arrivals[number], []))
                look(now, len(line))
            else:
                line.append((now, arrivals[number], []))
        else:
            for position, (entered, _, _) in enumerate(line, 1):
                if now - entered >= EVERY:
                    look(now, position)
        grant(now)
    return pairs


def table(pairs: dict[str, list[tuple[float, float]]]) -> str:
    lines = ["| estimate | looks | median error, s | 90 % below, s | bias, s | truth <= 1.5 x + 60 s |"]
    lines.append("|---|---|---|---|---|---|")
    for name, found in pairs.items():
        errors = [abs(said - true) for said, true in found]
        bias = mean(said - true for said, true in found)
        worst = quantiles(errors, n=10)[-1]
        bound = sum(true <= 1.5 * said + 60 for said, true in found) / len(found)
        lines.append(
            f"| {name} | {len(found)} | {median(errors):.0f} | {worst:.0f} | {bias:+.0f} "
            f"| {bound:.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(replay(*read(sys.argv[1]))))
