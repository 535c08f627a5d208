"""The seam between the queue and where it is kept: `QueueBackend`, its values and its events.

The life of one passage through a queue, whatever the backend::

                 enter                    grant                    leave
    (outside) ----------> waiting ------------------> holding ----------------> released
        |                    |  leave (timeout, cancel)   |  lease lapsed, reaped
        | enter, free slot   +---------> abandoned        +---------> lost
        +------------------> holding |  evict             |  evict
        | only_if_free       +---------> evicted          +---------> evicted
        +------------------> refused

A backend answers for every transition but one: it never ends a passage because of time. The
caller that gives up waiting says `leave`, and `leave` means the same in every state: *whatever this
ticket has, a place or a slot, is given back, and the slots that are free go to the heads of the
line, in the same atomic step*. Because of that, the race between a grant and a timeout or a
cancellation needs no case of its own: the ticket leaves, and if it had been granted a moment
before, the slot passes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

__all__ = [
    "Admission",
    "BackendEvent",
    "Departure",
    "Disrupted",
    "Entry",
    "Grant",
    "Heartbeat",
    "LimitDisagreement",
    "Listener",
    "Party",
    "QueueBackend",
    "QueueEntry",
    "QueueStats",
    "Reclaimed",
    "Recovered",
    "SlotLost",
    "Snapshot",
    "State",
    "Ticket",
    "made",
]

State: TypeAlias = Literal["waiting", "holding"]


made = tuple.__new__
"""A named tuple of the type and the tuple of *all* its fields, at a third of the cost of calling the
type: for those that are made in the path of every call."""


class Entry(NamedTuple):
    """What a caller asks for."""

    queue_id: str
    item_id: str
    limit: int | None = None
    """The call site's limit; None takes the one in force, or 1."""
    only_if_free: bool = False
    """Take a slot now or be refused; never wait."""
    context: str = ""
    """W3C `traceparent` of the caller, carried with the ticket and never read by the backend."""


class Ticket(NamedTuple):
    """One passage of an item through a queue.

    `id` is the backend's own, and unique in it; `item_id` need not be.
    """

    queue_id: str
    item_id: str
    id: str


class Party(NamedTuple):
    """The other side of a hand-off: whose departure made room, or who was given the slot."""

    item_id: str
    instance_id: str
    context: str


class Grant(NamedTuple):
    """A slot, given."""

    fencing_token: int
    released_by: Party | None = None
    """Whose departure made room; None when a slot was simply free, or the message was lost."""
    waited: float = 0.0
    """Seconds from entering to the grant, filled in by the observing layer, which owns the clock."""


class Admission(NamedTuple):
    """The answer to `enter`: granted (`grant`), waiting (`position` > 0), or refused (neither)."""

    ticket: Ticket
    grant: Grant | None
    position: int
    """1 is next; 0 when granted or refused."""
    depth: int
    """Waiters in the queue, this one included if it waits."""


class Departure(NamedTuple):
    """The answer to `leave`."""

    was: State | None
    """What the ticket gave back; None if it had nothing (any more), or the backend is unreachable."""
    granted_to: tuple[Party, ...] = ()


class QueueStats(NamedTuple):
    """A queue at one instant."""

    waiting: int
    in_use: int
    limit: int
    oldest_wait: float
    """Seconds for which the head has waited; 0.0 if nobody waits."""


class QueueEntry(NamedTuple):
    """One passage, as introspection shows it."""

    item_id: str
    instance_id: str
    state: State
    age: float
    """Seconds since it entered (waiting) or was granted its slot (holding)."""
    position: int | None
    """1 is next; None for a holder."""
    fencing_token: int | None
    """None for a waiter."""


class SlotLost(NamedTuple):
    """A holder of this instance has no slot any more, or cannot prove that it has one."""

    ticket: Ticket
    reason: Literal["lapsed", "reaped", "evicted", "closed"]


class Reclaimed(NamedTuple):
    """What a dead instance left behind was taken back by this one."""

    queue_id: str
    item_id: str
    instance_id: str
    state: State


class LimitDisagreement(NamedTuple):
    """A call site of another instance had named another limit; the one that came last is in force."""

    queue_id: str
    previous: int
    current: int


class Snapshot(NamedTuple):
    """A queue's shared state, reported with every heartbeat."""

    queue_id: str
    stats: QueueStats


class Disrupted(NamedTuple):
    """The backend cannot be reached, or lost its data; `reason` is one of a few fixed words."""

    reason: str
    detail: str


class Recovered(NamedTuple):
    """The backend is reached again after `Disrupted`."""

    outage: float
    """Seconds."""


class Heartbeat(NamedTuple):
    """One heartbeat of one queue is done."""

    seconds: float
    outcome: Literal["ok", "error"]


BackendEvent: TypeAlias = (
    SlotLost | Reclaimed | LimitDisagreement | Snapshot | Disrupted | Recovered | Heartbeat
)
Listener: TypeAlias = Callable[[BackendEvent], None]


@runtime_checkable
class QueueBackend(Protocol):
    """What `Queue` needs of the place where its lines are kept.

    All methods are called from one event loop. Each may be cancelled at any await point; what must
    hold then is said at each. The limit, the order and the exactly-once ending of every ticket are
    the backend's to keep (`design`: the promises).
    """

    @property
    def name(self) -> str:
        """The kind of backend, a label of metrics: "memory", "redis"."""

    @property
    def instance_id(self) -> str:
        """Unique for this object among all that share its queues, now and after a restart."""

    @property
    def heartbeat_interval(self) -> float:
        """Seconds between two `Snapshot`s of a queue in use."""

    def listen(self, listener: Listener) -> None:
        """Hand every `BackendEvent` to `listener`, which returns at once and never raises."""

    async def enter(self, entry: Entry) -> Admission:
        """Take a slot if one is free and nobody waits, else the last place in the line.

        If this raises or is cancelled, the ticket has ended: whatever it got is given back.

        Raises:
            BackendUnavailableError: the backend could not be reached in time.
        """

    async def wait(self, ticket: Ticket, timeout: float | None) -> Grant:
        """Wait until `ticket` is granted. However this ends, the caller says `leave` afterwards.

        Args:
            ticket: one that `enter` left waiting.
            timeout: seconds; None waits as long as it takes.

        Raises:
            TimeoutError: not granted in time.
            EvictedError: somebody took the ticket out of the line.
            BackendUnavailableError: out of reach for longer than the lease, or closed.
        """

    async def leave(self, ticket: Ticket, context: str = "") -> Departure:
        """Give back whatever `ticket` has, and grant the free slots to the heads of the line.

        Takes effect even if the awaiting task is cancelled, at the latest when the backend is
        reached again or the lease lapses. Saying it twice has the effect of saying it once. Never
        raises because the backend is out of reach.

        Args:
            ticket: in any state.
            context: `traceparent` of the hold, for those who are granted its slot.
        """

    def lapsed(self, ticket: Ticket) -> bool:
        """Whether a holder has no slot any more, or cannot prove that it has one, at this moment.

        It was evicted or reaped, the backend was closed, or the lease has run out, as far as this
        process can tell; in any case when `SlotLost` has told of it. Once true, it stays true. Not
        asked after `leave`.
        """

    async def set_limit(self, queue_id: str, limit: int | None) -> None:
        """Override the limit of a queue for all instances; None ends the override."""

    async def stats(self, queue_id: str) -> QueueStats:
        """The queue at this instant, over all instances."""

    async def position(self, queue_id: str, item_id: str) -> int | None:
        """The first place that `item_id` has in the line; 1 is next, None if it does not wait."""

    async def entries(self, queue_id: str) -> list[QueueEntry]:
        """Who holds, in the order of grants, then who waits, in the order of the line."""

    async def evict(self, queue_id: str, item_id: str) -> int:
        """Take all tickets of `item_id` out of the queue; returns how many there were."""

    async def ping(self) -> None:
        """Return if the backend answers.

        Raises:
            BackendUnavailableError: it does not.
        """

    async def close(self) -> None:
        """Give back all that this instance has, and stop. Waiters get `BackendUnavailableError`."""
