"""A day: the calls that come in, and the number of agents on duty. Times are seconds since midnight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

QUEUE = "bank"


class CannotRunError(Exception):
    """The day cannot be played as requested. The text says why, in one line."""


class Call(NamedTuple):
    call_id: str
    entered: float
    patience: float | None
    """Seconds that the caller waits before it hangs up; None: as long as it takes."""
    talk: float
    """Seconds that the call talks once it is answered."""

    def faster(self, speed: float) -> Call:
        """The same call with all its times divided by `speed`."""
        patience = None if self.patience is None else self.patience / speed
        return Call(self.call_id, self.entered / speed, patience, self.talk / speed)


class Outcome(NamedTuple):
    """What became of a call: answered, or abandoned, which means that the caller hung up."""

    entered: float
    waited: float
    answered: bool


class LimitChange(NamedTuple):
    at: float
    agents: int


@dataclass(frozen=True)
class Day:
    title: str
    calls: Sequence[Call]
    """In the order of entering."""
    limits: Sequence[LimitChange]
    recorded: Sequence[Outcome] = ()
    """What really became of the calls; empty for a generated day."""

    @property
    def start(self) -> float:
        return min([self.calls[0].entered] + [change.at for change in self.limits[:1]])


def clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600:02}:{whole % 3600 // 60:02}:{whole % 60:02}"
