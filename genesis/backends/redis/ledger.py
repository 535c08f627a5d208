"""What this instance has, as far as it knows: its lines and its passages.

States of a passage, and what moves it::

    ENTERING --reply: granted--> HOLDING        (the reply is trusted only within the lease, see fence)
    ENTERING --reply: waiting--> WAITING --message, reply or heartbeat: granted--> HOLDING
    WAITING, HOLDING --heartbeat or message: ended by others--> GONE
    any --leave--> removed

`fence` bounds the trust in all of it. Redis lets the lease lapse `lease` seconds after it carried out
the last renewal; the instance counts them from the moment at which it *sent* that renewal, on its own
monotonic clock, and so always arrives first, however long a message was on its way. Past the fence
another instance may have reaped this one, so

- a grant that is heard of then is not believed but asked about (the process was stopped, and the
  message had lain in the socket since), and no message about a waiter of that time is believed
  any more, however late it comes: it may be of a grant that was taken back when the lease lapsed;
- the holders are lost, for good, even if the next heartbeat finds that nobody reaped them: what was
  said about a slot is never taken back.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Iterable
from typing import Literal

from genesis.backends.protocol import BackendEvent, CallRef, Grant, Reclaimed, SlotLost, State, Ticket
from genesis.backends.redis.keys import queue_keys
from genesis.backends.waiting import fail
from genesis.exceptions import EvictedError

__all__ = ["Ledger", "Line", "Passage", "Stage", "parse_blob"]

Loss = Literal["lapsed", "reaped", "evicted", "closed"]


class Stage(enum.Enum):
    ENTERING = enum.auto()
    WAITING = enum.auto()
    HOLDING = enum.auto()
    GONE = enum.auto()


class Passage:
    """One ticket of this instance."""

    __slots__ = (
        "blob",
        "breaks",
        "doubtful",
        "early",
        "future",
        "line",
        "lost",
        "number",
        "stage",
        "ticket",
    )

    def __init__(self, ticket: Ticket, line: Line, context: str, breaks: int) -> None:
        self.ticket = ticket
        self.line = line
        self.breaks = breaks  # the link's, when this was made
        self.blob = f"{context} {ticket.item_id}".encode()
        self.stage = Stage.ENTERING
        self.number = 0  # the place in line while WAITING, the fencing token while HOLDING
        self.lost = False  # only ever turns true
        self.future: asyncio.Future[Grant] | None = None  # from WAITING on
        # A grant whose message overtook the reply to `enter`; the two come on two connections.
        self.early: tuple[int, CallRef | None] | None = None
        # It may have been reaped since it entered: only the link, which is in order, tells its grant.
        self.doubtful = False


class Line:
    """One queue in which this instance has something; dropped when it has nothing more there."""

    __slots__ = (
        "beating",
        "due",
        "epoch",
        "fence",
        "keys",
        "limit",
        "override",
        "passages",
        "pressed",
        "queue_id",
        "refused",
        "suspect",
        "unanswered",
    )

    def __init__(self, queue_id: str, keys: tuple[bytes, ...], fence: float, due: float) -> None:
        self.queue_id = queue_id
        self.keys = keys
        self.passages: dict[str, Passage] = {}  # in the order of entering
        self.epoch = b""  # of the state in Redis; another one means that it was lost
        self.limit = b""  # the call sites' and set_limit's numbers, to register them again
        self.override = (b"", b"")
        self.fence = fence  # seconds of the loop's clock
        self.due = due  # of the next heartbeat
        self.beating = False  # a heartbeat is on its way
        self.pressed = False  # another was asked for meanwhile
        self.refused = ""  # why the server refused the last heartbeat
        self.unanswered = 0  # leaves without an answer
        self.suspect = False  # Redis may have something here that this ledger has not

    @property
    def idle(self) -> bool:
        return not self.passages and not self.unanswered and not self.suspect


class Ledger:
    """The lines of one instance.

    Args:
        clock: the loop's.
        beat_soon: asks for a heartbeat at once.
        emit: hands an event to the listener.
    """

    def __init__(
        self,
        key_prefix: str,
        lease: float,
        clock: Callable[[], float],
        beat_soon: Callable[[Line], None],
        emit: Callable[[BackendEvent], None],
    ) -> None:
        self._key_prefix = key_prefix
        self._lease = lease
        self._clock = clock
        self._beat_soon = beat_soon
        self._emit = emit
        self.lines: dict[str, Line] = {}
        # All passages of all lines by ticket, because a wake-up message names nothing else.
        self._passages: dict[str, Passage] = {}

    def open(self, queue_id: str) -> Line:
        line = self.lines.get(queue_id)
        if line is None:
            now = self._clock()
            keys = queue_keys(self._key_prefix, queue_id)
            line = Line(queue_id, keys, now + self._lease, now + self._lease / 3)
            self.lines[queue_id] = line
        return line

    def drop_if_idle(self, line: Line) -> None:
        if line.idle and self.lines.get(line.queue_id) is line:
            del self.lines[line.queue_id]

    def add(self, passage: Passage) -> None:
        self._passages[passage.ticket.id] = passage
        passage.line.passages[passage.ticket.id] = passage

    def find(self, ticket_id: str) -> Passage | None:
        return self._passages.get(ticket_id)

    def remove(self, passage: Passage) -> None:
        self._passages.pop(passage.ticket.id, None)
        passage.line.passages.pop(passage.ticket.id, None)

    def renewed(self, line: Line, sent: float) -> None:
        """Redis has renewed the lease, asked by what was sent at `sent`."""
        if sent >= line.fence:
            self.lapse(line)  # there was a gap, even if nobody reaped in it
        line.fence = max(line.fence, sent + self._lease)

    def lapse(self, line: Line) -> None:
        for passage in line.passages.values():
            if passage.stage is Stage.HOLDING:
                self.lose(passage, "lapsed")
            else:
                self.doubt(passage)

    def doubt(self, passage: Passage) -> None:
        """Redis did not know it for a while, or may not have."""
        passage.doubtful = True
        passage.early = None

    def lose(self, passage: Passage, reason: Loss) -> None:
        if not passage.lost:
            passage.lost = True
            self._emit(SlotLost(passage.ticket, reason))

    def admitted(self, passage: Passage, state: bytes, number: int) -> None:
        """The reply to `enter`, for a passage that is still wanted."""
        evicted_early = passage.stage is Stage.GONE
        passage.number = number
        passage.future = asyncio.get_running_loop().create_future()
        passage.stage = Stage.WAITING
        if state == b"gone" or evicted_early:
            self.ended(passage, "evicted")
        elif state == b"granted":
            self.grant(passage, number, None)
        elif passage.early is not None:
            self.heard(passage, *passage.early)

    def heard(self, passage: Passage, token: int, released_by: CallRef | None) -> None:
        """A message told of a grant; it may be older than the state that Redis has now.

        Numbers are times, as epochs are. A grant from before a loss of data, or from before a reaping,
        is none any more if its waiter has registered again or entered anew by now: Redis shows it
        waiting, and the slot may go to another. So it is asked about.
        """
        waits = passage.stage is Stage.WAITING
        old = waits and token < max(passage.number, int(passage.line.epoch or 0))
        if old or (passage.doubtful and (waits or passage.stage is Stage.ENTERING)):
            self._beat_soon(passage.line)
        else:
            self.grant(passage, token, released_by)

    def grant(self, passage: Passage, token: int, released_by: CallRef | None) -> None:
        """A grant was heard of: by reply, by message, by heartbeat, perhaps by several of them."""
        if passage.stage is Stage.ENTERING:
            passage.early = (token, released_by)
        elif passage.stage is Stage.WAITING:
            if self._clock() >= passage.line.fence:
                self._beat_soon(passage.line)
                return
            passage.stage = Stage.HOLDING
            passage.number = token
            if passage.future is not None and not passage.future.done():
                passage.future.set_result(Grant(token, released_by))

    def ended(self, passage: Passage, reason: Literal["evicted", "reaped"]) -> None:
        """Somebody else ended the passage. Its task will say `leave`, which tidies up."""
        if passage.stage is Stage.HOLDING:
            self.lose(passage, reason)
        elif passage.future is not None:
            ticket = passage.ticket
            fail(passage.future, EvictedError(ticket.queue_id, ticket.item_id))
        passage.stage = Stage.GONE

    def absorb(
        self,
        queue_id: str,
        granted: Iterable[tuple[bytes, bytes, bytes]],
        reclaimed: Iterable[tuple[bytes, bytes, bytes]],
        released_by: CallRef | None = None,
    ) -> tuple[CallRef, ...]:
        """Take in what a script did to others; returns who was granted."""
        parties = []
        for raw, token, blob in granted:
            ticket_id = raw.decode()
            context, item_id = parse_blob(blob)
            parties.append(CallRef(item_id, instance_of(ticket_id), context))
            passage = self.find(ticket_id)
            if passage is not None:
                # The message will come, too; the reply is here already.
                self.grant(passage, int(token), released_by)
        for kind, raw, blob in reclaimed:
            state: State = "holding" if kind == b"holding" else "waiting"
            _, item_id = parse_blob(blob)
            self._emit(Reclaimed(queue_id, item_id, instance_of(raw.decode()), state))
        return tuple(parties)


def parse_blob(blob: bytes) -> tuple[str, str]:
    """`<context> <item_id>`; the context has no blank, the item_id may have any."""
    context, _, item_id = blob.decode().partition(" ")
    return context, item_id


def instance_of(ticket_id: str) -> str:
    return ticket_id.rpartition(":")[0]
