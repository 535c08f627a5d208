"""A ticket of this instance, how a `sync` lists it, and the session numbers."""

from __future__ import annotations

import enum
from collections.abc import Iterable

from genesis.backends.redis.members import ticket_of

__all__ = ["LocalTicket", "Sessions", "Stage", "pages_of"]


class Stage(enum.Enum):
    ENTERING = "e"
    WAITING = "w"
    HOLDING = "h"
    ENDED = "x"


class LocalTicket:
    """One ticket of this instance. The backend creates it; only the core changes it."""

    __slots__ = (
        "back", "id", "keep_until", "kept", "left", "limit", "max_waiting", "member", "number",
        "only_if_free", "place", "resumed", "sent", "stage", "wanted",
    )  # fmt: skip

    def __init__(
        self,
        member: bytes,
        limit: bytes = b"",
        only_if_free: bool = False,
        max_waiting: bytes = b"",
        kept: bytes = b"",
    ) -> None:
        self.id = ticket_of(member)
        self.member = member
        self.limit = limit
        self.only_if_free = only_if_free
        self.max_waiting = b"0" if only_if_free else max_waiting
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

    def leaves(self, keep_until: float, back: bool) -> None:
        """Set what happens to its place. A slot might be granted while the call is being cancelled."""
        self.keep_until = keep_until if self.place else 0.0
        self.back = back and self.kept != b""

    def leave_arguments(self, origin: bytes, now: float) -> tuple[bytes, ...]:
        """The arguments of leave.lua."""
        holds = self.stage is Stage.HOLDING and not self.keep_until
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


class Sessions:
    """The session numbers of one instance: one counter for all its queues.

    With one counter per queue, an instance that had dropped an idle queue would restart at 1, and Redis
    would reject its commands as late.
    """

    def __init__(self) -> None:
        self.last = 0

    def next(self) -> int:
        self.last += 1
        return self.last


def pages_of(
    tickets: Iterable[LocalTicket], size: int
) -> list[tuple[tuple[LocalTicket, ...], bytes, bytes]]:
    """The pages of a sync: the tickets of each, and the members that bound it; '' is no bound."""
    listed = [ticket for ticket in tickets if ticket.listed]
    pages = [tuple(listed[i : i + size]) for i in range(0, len(listed), size)] or [()]
    bounds = [b"", *(page[-1].member for page in pages[:-1]), b""]
    return list(zip(pages, bounds[:-1], bounds[1:], strict=True))
