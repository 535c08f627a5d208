"""What a core puts out: commands to send, verdicts about tickets, events of the backend."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

from genesis.backends.protocol import BackendEvent, CallRef, LeaveResult, Refusal
from genesis.backends.redis.ticket import LocalTicket

__all__ = ["Command", "Output"]


class Command(NamedTuple):
    """A script call. The driver puts instance, session, lease and channel prefix before `arguments`."""

    name: Literal["enter", "leave", "beat", "sync"]
    session: int
    arguments: tuple[bytes, ...]
    tickets: tuple[LocalTicket, ...]
    sent: float
    last: bool = True
    """Whether this is the last page of a sync."""


class Output(Protocol):
    """Called by a core in the middle of an event, in order. No method may cause another event.

    A `call` is a ticket that was passed to `QueueCore.enter`. Once it has left, only `left` is called.
    """

    def send(self, command: Command) -> None:
        """Send a command."""

    def emit(self, event: BackendEvent) -> None:
        """Pass on an event that concerns no ticket of this instance."""

    def granted(self, call: Any, by: CallRef | None) -> None:
        """It holds a slot; `by` is the call that freed it, if it is known."""

    def waiting(self, call: Any, position: int, depth: int, holders: tuple[CallRef, ...]) -> None:
        """It stands in the line."""

    def refused(self, call: Any, reason: Refusal, depth: int, retry_after: float | None) -> None:
        """It was not let into the line."""

    def failed(self, call: Any, error: Exception) -> None:
        """Redis replied to `enter`, or to the sync that listed it, with an error."""

    def evicted(self, call: Any) -> None:
        """It was evicted before it held a slot."""

    def out_of_reach(self, call: Any) -> None:
        """It waits, and the lease lapsed during an outage of the connection."""

    def lost(self, call: Any, reason: Literal["lapsed", "reaped", "evicted"]) -> None:
        """It has lost its slot."""

    def left(self, call: Any, result: LeaveResult, confirmed: bool) -> None:
        """It has left: the last verdict; see `genesis.backends.protocol.Left`."""

    def rejected(self, command: str, error: Exception) -> None:
        """Redis rejected a command other than `enter`. A sync follows."""
