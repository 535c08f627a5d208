"""The source of a schedule's decisions: a seed, or an enumeration of all of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Protocol

__all__ = ["Choices", "Path", "Seeded", "every_path"]


class Choices(Protocol):
    """Decides each step of a schedule; nothing else in a schedule is random."""

    def pick(self, count: int) -> int:
        """A number from 0 to `count` - 1."""

    def weighted(self, weights: Sequence[int]) -> int:
        """The index of one weight; the weights only bias a search by seed."""

    def chance(self, probability: float) -> bool:
        """True or False; the probability only biases a search by seed; an enumeration tries both."""


class Seeded:
    """Decisions drawn from a seed."""

    def __init__(self, seed: int | str) -> None:
        self._draw = random.Random(seed).random

    def pick(self, count: int) -> int:
        return int(self._draw() * count)

    def weighted(self, weights: Sequence[int]) -> int:
        rest = self._draw() * sum(weights)
        for number, weight in enumerate(weights):
            rest -= weight
            if rest < 0:
                return number
        return len(weights) - 1

    def chance(self, probability: float) -> bool:
        return self._draw() < probability


class Path:
    """Decisions that follow `prefix`, and then always take the first possibility."""

    def __init__(self, prefix: Sequence[int] = ()) -> None:
        self._prefix = prefix
        self.taken: list[int] = []
        self.widths: list[int] = []

    def pick(self, count: int) -> int:
        if count == 1:
            return 0
        depth = len(self.taken)
        choice = self._prefix[depth] if depth < len(self._prefix) else 0
        self.taken.append(choice)
        self.widths.append(count)
        return choice

    def weighted(self, weights: Sequence[int]) -> int:
        return self.pick(len(weights))

    def chance(self, probability: float) -> bool:
        return self.pick(2) == 0


def every_path() -> Iterator[Path]:
    """Every path through a tree of decisions, depth first. Follow each path before taking the next."""
    prefix: list[int] = []
    while True:
        path = Path(prefix)
        yield path
        taken, widths = path.taken, path.widths
        while taken and taken[-1] == widths[-1] - 1:
            taken.pop()
            widths.pop()
        if not taken:
            return
        taken[-1] += 1
        prefix = taken
