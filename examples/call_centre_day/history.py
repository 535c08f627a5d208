"""What is recorded of a run: the steps of each call, the changes of the limit, and snapshots.

All times are `time.monotonic_ns`, which is one clock for all processes of a machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Kind = Literal["entering", "granted", "leaving", "left", "abandoned", "failed"]


class Event(NamedTuple):
    """A step of a call, recorded by the process that handles it.

    `entering` and `leaving` are recorded before the queue is called; `granted`, `left`, `abandoned` and
    `failed` after it has returned.
    """

    instance: str
    kind: Kind
    at: int
    call_id: str
    token: int = 0
    waited: float = 0.0
    detail: str = ""


Record = Callable[[Event], None]


class Recorder:
    """Records the steps of the calls of one instance, with the time at which it is called."""

    def __init__(self, instance: str, record: Record) -> None:
        self._instance = instance
        self._record = record

    def __call__(
        self, kind: Kind, call_id: str, *, token: int = 0, waited: float = 0.0, detail: str = ""
    ) -> None:
        at = time.monotonic_ns()
        self._record(Event(self._instance, kind, at, call_id, token, waited, detail))


class LimitSet(NamedTuple):
    """A `set_limit`, which took effect at some time between `asked` and `answered`."""

    limit: int
    asked: int
    answered: int


class Snapshot(NamedTuple):
    """The result of `queue.entries`, true at some time between `asked` and `answered`."""

    asked: int
    answered: int
    waiting: tuple[str, ...]
    """In the order of the line."""
    holding: tuple[str, ...] = ()


@dataclass
class History:
    events: list[Event] = field(default_factory=list)
    """The events of one instance are in the order in which they happened."""
    limits: list[LimitSet] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    dispatched: dict[str, str] = field(default_factory=dict)
    """The instance that each call was given to."""
    killed: dict[str, int] = field(default_factory=dict)
    """When an instance was killed: the time just before the SIGKILL."""

    def all_of(self, kind: Kind) -> list[Event]:
        return [event for event in self.events if event.kind == kind]

    def by_call(self, kind: Kind) -> dict[str, Event]:
        return {event.call_id: event for event in self.all_of(kind)}
