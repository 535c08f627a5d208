"""What is to be reached, as ratios within one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

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
        Verdict("Redis, one task: a pair / two bare EVALSHA", _ratio(found, "redis-free", OURS), 1.25),
        Verdict(
            "Redis, 64 tasks: throughput / redis-py's over its pool",
            _inverse(_ratio(found, "redis-64", f"{OURS}, 64 tasks")),
            1.5,
            at_least=True,
        ),
        Verdict(
            "Redis, 500 tasks: a pair / a pair with 64",
            _ratio(found, "redis-500-to-64", f"{OURS}, 500 tasks"),
            1.0,
        ),
        Verdict(
            "Redis, hand-off to another process / bare EVALSHA that publishes + its delivery",
            _ratio(found, "across-hand-off", OURS),
            1.5,
        ),
        Verdict(
            "the same, each inside for 5 ms",
            _ratio(found, "across-held", OURS),
            1.5,
        ),
        *_in_memory(found, "memory-free", "enter + leave", SEMAPHORE_FREE, (2.5, 8.0, 20.0)),
        *_in_memory(found, "memory-hand-off", "hand-off", SEMAPHORE_HAND_OFF, (7.0, 12.0, 22.0)),
    ]


def _in_memory(
    found: Found, key: str, what: str, semaphore: float, bounds: tuple[float, float, float]
) -> list[Verdict]:
    """Bounds in us hold where `asyncio.Semaphore` takes `semaphore` us; elsewhere in proportion."""
    rows = ("backend, bare", "Queue, no SDK", OURS)
    return [
        Verdict(
            f"in memory, {what}: {row} / asyncio.Semaphore",
            _ratio(found, key, row),
            round(bound / semaphore, 2),
        )
        for row, bound in zip(rows, bounds, strict=True)
    ]


def _ratio(found: Found, key: str, row: str) -> float | None:
    return found[key].ratio(row) if key in found else None


def _inverse(ratio: float | None) -> float | None:
    return None if ratio is None else 1 / ratio
