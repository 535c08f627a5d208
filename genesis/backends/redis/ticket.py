"""What goes into a core and comes out of it: tickets, commands and results."""

from __future__ import annotations

import enum
from typing import Any, Literal, NamedTuple, Protocol

from genesis.backends.protocol import BackendEvent, CallRef, LeaveResult
from genesis.backends.redis.members import ticket_of


class Stage(enum.Enum):
    ENTERING = "e"
    WAITING = "w"
    HOLDING = "h"
    ENDED = "x"


class LocalTicket:
    """One ticket of this instance. The backend creates it; only the core changes it."""

    __slots__ = (
        "back", "id", "keep_until", "kept", "left", "limit", "max_waiting", "member", "number",
        "place", "resumed", "sent", "stage", "wanted",
    )  # fmt: skip

    def __init__(
        self,
        member: bytes,
        limit: bytes = b"",
        max_waiting: bytes = b"",
        kept: bytes = b"",
    ) -> None:
        self.id = ticket_of(member)
        self.member = member
        self.limit = limit
        self.max_waiting = max_waiting
        self.kept = kept  # the requested kept place, `<kept id> <place>`
        self.resumed = False  # it got that place
        self.stage = Stage.ENTERING
        self.number = 0  # the place while WAITING, the fencing token while HOLDING
        self.wanted = True  # its call has not left
        self.sent = False  # Redis might know it
        self.left = 0  # the session in which its leave was sent
        self.keep_until = 0.0  # by the caller's clock: how long its place is kept; 0.0: not at all
        self.back = False  # it left before the reply: the kept place that it took is given back
        self.place = 0  # its last place in the line; 0: it never waited

    @property
    def listed(self) -> bool:
        """Whether a sync lists it."""
        return self.stage is not Stage.ENDED and (self.wanted or self.back or self.keep_until > 0)

    @property
    def asks_who(self) -> bool:
        """Whether the reply names the holders if it must wait, because it has a trace context."""
        return self.member.split(b" ", 3)[2] != b""

    def leave_arguments(self, context: bytes, now: float) -> tuple[bytes, ...]:
        """The arguments of leave.lua."""
        holds = self.stage is Stage.HOLDING and not self.keep_until
        ticket, head_start, _, item_id = self.member.split(b" ", 3)
        origin = b" ".join((ticket, head_start, context, item_id))
        return self.member, b"%d" % self.number if holds else b"", origin, *self._kept(now)

    def _kept(self, now: float) -> tuple[bytes, bytes]:
        """The last two arguments of leave.lua."""
        if self.back:
            return b"back", self.kept
        if self.keep_until:
            return b"%d" % max(0, round((self.keep_until - now) * 1e6)), b"%d" % self.place
        return b"", b""

    def row(self, now: float) -> tuple[bytes, ...]:
        """The ticket's arguments in sync.lua."""
        if not self.wanted:
            return self.member, b"k", b"0", *self._kept(now)
        stage, number = self.stage.value.encode(), b"%d" % self.number
        kept = self.kept if self.resumed or self.stage is Stage.ENTERING else b""
        return self.member, stage, number, self.max_waiting, kept


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

    def next_session(self, above: int) -> int:
        """A number greater than `above` and than those of all queues of the instance.

        With one counter per queue, an instance that had dropped an idle queue would restart at 1, and
        Redis would reject its commands as late.
        """

    def emit(self, event: BackendEvent) -> None:
        """Pass on an event that concerns no ticket of this instance."""

    def granted(self, call: Any, by: CallRef | None) -> None:
        """It holds a slot; `by` is the call that freed it, if it is known."""

    def waiting(self, call: Any, position: int, depth: int, holders: tuple[CallRef, ...]) -> None:
        """It stands in the line."""

    def refused(self, call: Any, depth: int, retry_after: float | None) -> None:
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
        """It has left: nothing follows; see `genesis.backends.protocol.Left`."""

    def rejected(self, command: str, error: Exception) -> None:
        """Redis rejected a command other than `enter`. A sync follows."""
