"""The output of the core: commands to send, and verdicts about tickets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from genesis.backends.estimate import FEWEST_HOLDS
from genesis.backends.protocol import CallRef, LeaveResult, QueueStats, Refusal, State
from genesis.backends.redis.ticket import LocalTicket

__all__ = [
    "Beaten", "Command", "DataLost", "Disagreement", "Evicted", "Failed", "Granted", "Left", "Lost",
    "OutOfReach", "Reclaimed", "Refused", "Rejected", "Verdict", "Waiting", "stats_of",
]  # fmt: skip


class Command(NamedTuple):
    """A script call. The driver puts instance, session, lease and channel prefix before `arguments`."""

    name: Literal["enter", "leave", "beat", "sync"]
    session: int
    arguments: tuple[bytes, ...]
    tickets: tuple[LocalTicket, ...]
    sent: float
    last: bool = True
    """Whether this is the last page of a sync."""


class Granted(NamedTuple):
    ticket: LocalTicket
    released_by: CallRef | None


class Waiting(NamedTuple):
    ticket: LocalTicket
    position: int
    depth: int
    holders: tuple[CallRef, ...]


class Refused(NamedTuple):
    ticket: LocalTicket
    reason: Refusal
    depth: int
    limit: int
    holds: int
    mean_hold: float


class Failed(NamedTuple):
    """Redis replied to `enter`, or to the sync that listed the ticket, with an error."""

    ticket: LocalTicket
    error: Exception


class Evicted(NamedTuple):
    ticket: LocalTicket


class OutOfReach(NamedTuple):
    """A waiter whose lease lapsed during an outage of the connection."""

    ticket: LocalTicket


class Lost(NamedTuple):
    ticket: LocalTicket
    reason: Literal["lapsed", "reaped", "evicted"]


class Left(NamedTuple):
    ticket: LocalTicket
    result: LeaveResult
    confirmed: bool


class Reclaimed(NamedTuple):
    call: CallRef
    state: State


class Disagreement(NamedTuple):
    previous: int
    current: int


class Beaten(NamedTuple):
    """A heartbeat got its reply; `stats` is None after an error reply."""

    seconds: float
    stats: QueueStats | None


class DataLost(NamedTuple):
    tickets: int


class Rejected(NamedTuple):
    """Redis rejected a command other than `enter`. A sync follows."""

    command: str
    error: Exception


Verdict: TypeAlias = (
    Granted | Waiting | Refused | Failed | Evicted | OutOfReach | Lost | Left | Reclaimed | Disagreement
    | Beaten | DataLost | Rejected
)  # fmt: skip


def stats_of(numbers: Sequence[Any]) -> QueueStats:
    """Convert the reply of `numbers` in library.lua."""
    waiting, in_use, limit, oldest_wait, oldest_hold, holds, mean = numbers
    mean_hold = mean / 1e6 if holds >= FEWEST_HOLDS else None
    return QueueStats(waiting, in_use, int(limit), oldest_wait / 1e6, oldest_hold / 1e6, mean_hold)
