"""A ticket of this instance, and how a `sync` lists it."""

from __future__ import annotations

import enum
from typing import Any

from genesis.backends.redis.members import ticket_of

__all__ = ["LocalTicket", "Stage", "is_listed", "row_of"]


class Stage(enum.Enum):
    ENTERING = "e"
    WAITING = "w"
    HOLDING = "h"
    ENDED = "x"


class LocalTicket:
    """One ticket of this instance. Made by the caller, changed by the core alone."""

    __slots__ = (
        "handle", "id", "keep", "kept", "left", "limit", "max_waiting", "member", "number",
        "only_if_free", "place", "resumed", "sent", "stage", "wanted",
    )  # fmt: skip

    def __init__(
        self,
        member: bytes,
        handle: Any,
        limit: bytes = b"",
        only_if_free: bool = False,
        max_waiting: bytes = b"",
        kept: bytes = b"",
    ) -> None:
        self.id = ticket_of(member)
        self.member = member
        self.handle = handle  # the caller's own
        self.limit = limit
        self.only_if_free = only_if_free
        self.max_waiting = max_waiting
        self.kept = kept  # `<kept id> <place>` that it asks for
        self.resumed = False  # ... and got
        self.stage = Stage.ENTERING
        self.number = 0  # the place while WAITING, the fencing token while HOLDING
        self.wanted = True
        self.sent = False  # Redis might know of it
        self.left = 0  # the session in which its leave was sent
        self.keep = 0  # us for which its place is kept after it left
        self.place = 0  # ... which is this one


def is_listed(ticket: LocalTicket) -> bool:
    return ticket.stage is not Stage.ENDED and (ticket.wanted or ticket.keep > 0)


def row_of(ticket: LocalTicket) -> tuple[bytes, ...]:
    """A ticket in a sync, see sync.lua."""
    if not ticket.wanted:
        return ticket.member, b"k", b"%d" % ticket.place, b"%d" % ticket.keep, b"", b""
    kept = ticket.kept if ticket.resumed or ticket.stage is Stage.ENTERING else b""
    return (
        ticket.member,
        ticket.stage.value.encode(),
        b"%d" % ticket.number,
        b"free" if ticket.only_if_free else b"",
        ticket.max_waiting,
        kept,
    )
