"""The results of the checker."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["RULES", "Verdict", "Violation"]


RULES = (
    "ending",
    "token",
    "limit",
    "fifo",
    "place",
    "full",
    "standstill",
    "cause",
    "timing",
    "stuck",
    "left_over",
    "window",
)


class Violation(NamedTuple):
    rule: str
    at: float
    queue: str
    text: str


@dataclass
class Verdict:
    """The result of `check`.

    Attributes:
        overshoots: seconds for which each grant beyond the limit that was excused overlapped.
        overshot_after: seconds from the loss of data to each such grant.
        overtaken: excused inversions of the order.
        windows: seconds from the end of each loss of data until each instance had registered again.
        windows_alone: those of losses without another fault.
        outcomes: endings, counted.
        calm: seconds without any effect of a fault; the rule `standstill` applies to them.
    """

    violations: list[Violation] = field(default_factory=list)
    overshoots: list[float] = field(default_factory=list)
    overshot_after: list[float] = field(default_factory=list)
    overtaken: int = 0
    windows: list[float] = field(default_factory=list)
    windows_alone: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    calm: float = 0.0

    def add(self, rule: str, at: float, queue: str, text: str) -> None:
        self.violations.append(Violation(rule, at, queue, text))

    def of(self, rule: str) -> list[Violation]:
        return [violation for violation in self.violations if violation.rule == rule]
