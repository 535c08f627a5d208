"""What is to be reached, as ratios within one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.benchmarks.across import TWO
from tests.benchmarks.growth import row
from tests.benchmarks.rounds import Comparison

__all__ = ["Verdict", "judge"]

Found = Mapping[str, Comparison]

OURS = "Queue, 1 % sampled"
SEMAPHORE_FREE, SEMAPHORE_HAND_OFF = 0.45, 4.5  # us, where the bounds below were set in us


class Verdict(NamedTuple):
    target: str
    measured: float | None
    """None if the rows that it needs were not measured."""
    bound: float
    at_least: bool = False

    @property
    def reached(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    def as_json(self) -> dict[str, Any]:
        return {**self._asdict(), "reached": self.reached}


def judge(comparisons: list[Comparison]) -> list[Verdict]:
    found = {comparison.key: comparison for comparison in comparisons}
    return [
        Verdict("Redis, one task: a pair / two bare EVALSHA", _ratio(found, "redis-free", OURS), 0.7),
        Verdict(
            "Redis, 64 tasks: a pair / redis-py's over its pool",
            _ratio(found, "redis-64", f"{OURS}, 64 tasks"),
            0.4,
        ),
        Verdict(
            "Redis, 500 tasks: a pair / a pair with 64",
            _ratio(found, "redis-500-to-64", f"{OURS}, 500 tasks"),
            1.0,
        ),
        Verdict(
            "Redis, hand-off to another process / bare EVALSHA, then PUBLISH + its delivery",
            _ratio(found, "across-hand-off", OURS, TWO),
            1.5,
        ),
        Verdict(
            "the same / bare EVALSHA that publishes by itself + its delivery",
            _ratio(found, "across-hand-off", OURS),
            1.5,
        ),
        Verdict(
            "the same as that, each inside for 5 ms",
            _ratio(found, "across-held", OURS),
            1.5,
        ),
        Verdict(
            "in memory, hand-off: 100,000 wait / 100 wait",
            _ratio(found, "growth-memory", row(100_000)),
            1.35,
        ),
        Verdict(
            "Redis, hand-off: 100,000 wait / 100 wait",
            _ratio(found, "growth-redis", row(100_000)),
            1.35,
        ),
        Verdict("Redis, bytes a waiter", _median(found, "weight-redis", "a waiter"), 1_000),
        Verdict(
            "Python, bytes a waiter, in memory",
            _median(found, "weight-python", f"{OURS}, in memory"),
            4_000,
        ),
        Verdict(
            "Python, bytes a waiter, Redis", _median(found, "weight-python", f"{OURS}, Redis"), 4_000
        ),
        *_in_memory(found, "memory-free", "enter + leave", SEMAPHORE_FREE, (2.5, 8.0, 20.0)),
        *_in_memory(found, "memory-hand-off", "hand-off", SEMAPHORE_HAND_OFF, (7.0, 12.0, 22.0)),
        *_beside_others(found),
    ]


def _in_memory(
    found: Found, key: str, what: str, semaphore: float, bounds: tuple[float, float, float]
) -> list[Verdict]:
    """Bounds in us hold where `asyncio.Semaphore` takes `semaphore` us; elsewhere in proportion."""
    bare, quiet, sampled = bounds
    rows = {
        "backend, bare": bare,
        "backend, no SDK": quiet,
        "backend, 1 % sampled": sampled,
        "Queue, no SDK": quiet,
        OURS: sampled,
    }
    return [
        Verdict(
            f"in memory, {what}: {row} / asyncio.Semaphore",
            _ratio(found, key, row),
            round(bound / semaphore, 2),
        )
        for row, bound in rows.items()
    ]


HAND_OFFS = ("hand-off", "across", "held")
TO_REDSYNC = {"free": 0.75, "cpu": 0.6, **dict.fromkeys(HAND_OFFS, 1.25)}
TO_BEFORE = dict.fromkeys(HAND_OFFS, 0.75)


def _beside_others(found: Found) -> list[Verdict]:
    """Ours as a share of the fastest peer, and of this library before its Redis backend was rebuilt."""
    verdicts = []
    for suffix in ("", "-uvloop"):
        for library, bounds in (("redsync 2.0.0", TO_REDSYNC), ("commit ba0ea4a", TO_BEFORE)):
            for key, bound in bounds.items():
                comparison = found.get(f"peers-{key}{suffix}")
                ratio = comparison.ratio(library) if comparison else None
                if comparison and ratio:
                    verdicts.append(Verdict(f"{comparison.title}: ours / {library}", 1 / ratio, bound))
    return verdicts


def _ratio(found: Found, key: str, row: str, to: str | None = None) -> float | None:
    return found[key].ratio(row, to) if key in found else None


def _median(found: Found, key: str, row: str) -> float | None:
    return found[key].median(row) if key in found else None
