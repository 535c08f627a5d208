"""How things are compared: in one run, in alternating rounds, as medians with ratios.

A machine drifts by more than most differences that matter, so a figure alone says little. The rows of
one comparison take turns, round by round, in an order that is reversed every other round; the ratio of
a row is the median, over the rounds, of its figure divided by the yardstick's *of the same round*.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

__all__ = ["Comparison", "Plan", "Row", "alternate"]

Row = Callable[[], Awaitable[float]]
"""Carries out one round and returns its figure."""


class Plan(NamedTuple):
    """How much to measure."""

    rounds: int = 7
    scale: float = 1.0
    """Factor on how much a round does; tests run the whole at a hundredth."""

    def count(self, full: int, least: int = 2) -> int:
        return max(least, round(full * self.scale))

    def at_most(self, rounds: int) -> Plan:
        """For what takes long: fewer rounds."""
        return self._replace(rounds=min(self.rounds, rounds))


class Comparison:
    """Rows of one subject, side by side.

    Args:
        key: names it, on the command line and in the JSON.
        title: says what a figure is.
        unit: of the figures.
        yardstick: the row that the ratios refer to; None for none.
        samples: figures by row, one a round, in step.
        notes: what must be said about a row; a row without samples has only that.
    """

    def __init__(
        self,
        key: str,
        title: str,
        unit: str,
        yardstick: str | None,
        samples: Mapping[str, list[float]],
        notes: Mapping[str, str] | None = None,
    ) -> None:
        self.key = key
        self.title = title
        self.unit = unit
        self.yardstick = yardstick
        self.samples = dict(samples)
        self.notes = dict(notes or {})

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Comparison:
        samples = {entry["row"]: entry["rounds"] for entry in found["rows"] if "rounds" in entry}
        notes = {entry["row"]: entry["note"] for entry in found["rows"] if "note" in entry}
        key, title, unit, yardstick = (found[it] for it in ("key", "title", "unit", "yardstick"))
        return cls(key, title, unit, yardstick, samples, notes)

    @property
    def rows(self) -> list[str]:
        return [*self.samples, *(row for row in self.notes if row not in self.samples)]

    def median(self, row: str) -> float | None:
        figures = self.samples.get(row)
        return statistics.median(figures) if figures else None

    def ratio(self, row: str, to: str | None = None) -> float | None:
        """The median of the ratios within each round, to the yardstick or to another row."""
        to = to or self.yardstick
        mine, other = self.samples.get(row), self.samples.get(to or "")
        if not mine or not other:
            return None
        return statistics.median(a / b for a, b in zip(mine, other, strict=False) if b)

    def as_json(self) -> dict[str, Any]:
        rows = []
        for row in self.rows:
            entry: dict[str, Any] = {"row": row}
            figures = self.samples.get(row)
            if figures:
                entry["median"] = self.median(row)
                entry["ratio"] = self.ratio(row)
                entry["rounds"] = figures
            if row in self.notes:
                entry["note"] = self.notes[row]
            rows.append(entry)
        return {
            "key": self.key,
            "title": self.title,
            "unit": self.unit,
            "yardstick": self.yardstick,
            "rows": rows,
        }


async def alternate(rows: Mapping[str, Row], rounds: int) -> dict[str, list[float]]:
    """Run every row once unmeasured, then `rounds` times, taking turns."""
    samples: dict[str, list[float]] = {name: [] for name in rows}
    for round_ in range(rounds + 1):
        order = list(rows)
        if round_ % 2:
            order.reverse()
        for name in order:
            gc.collect()
            figure = await rows[name]()
            if round_:
                samples[name].append(figure)
    return samples
