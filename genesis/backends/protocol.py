"""The interface between `Queue` and its backend: `QueueBackend`, its values and its events.

States of a ticket, whatever the backend:

| state    | event                                   | next      |
|----------|-----------------------------------------|-----------|
| -        | `enter`, a slot is free, nobody waits   | holding   |
| -        | `enter`, otherwise                      | waiting   |
| -        | `enter`, `max_waiting` calls wait        | refused   |
| waiting  | grant                                   | holding   |
| waiting  | `leave` (timeout, cancellation)         | abandoned |
| waiting  | evict                                   | evicted   |
| holding  | `leave`                                 | released  |
| holding  | lease lapsed, reaped                    | lost      |
| holding  | evict                                   | evicted   |

The backend makes every transition except one: it never ends a ticket because of a caller's timeout. A
caller that gives up calls `leave`. `leave` means the same in every state: *the ticket gives back its
place or slot, and free slots are granted to the heads of the line, in one atomic step*. The race
between a grant and a timeout or a cancellation therefore needs no special case: the ticket leaves, and
if it was granted a moment before, the slot passes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from genesis.backends.places import encode

State: TypeAlias = Literal["waiting", "holding"]

ONE_REPLY = 1.0
"""Seconds for the reply to a call that does not wait."""

new_tuple = tuple.__new__
"""`new_tuple(Type, (every, field))` creates a named tuple at a third of the cost of `Type(...)`. It is
used on the path of every call."""


class EnterRequest(NamedTuple):
    """The arguments of `enter`. The caller has validated every value."""

    queue_id: str
    item_id: str
    limit: int | None = None
    """The call site's limit; None uses the limit in force, or 1."""
    context: str = ""
    """W3C `traceparent` of the caller, stored with the ticket; the backend does not interpret it."""
    max_waiting: int | None = None
    """Refuse the call if no slot is free and this many calls already wait; 0 if it must not wait."""
    head_start: float = 0.0
    """Seconds; the place is that of a call that entered this much earlier."""
    place_token: str = ""
    """`EnterResult.place_token` of an earlier ticket: take its place if it is still kept."""
    timeout: float | None = None
    """Seconds within which the backend must reply; at most, and by default, its operation timeout. 0
    allows one reply: at most `ONE_REPLY`."""


class Ticket(NamedTuple):
    """One passage of an item through a queue.

    The backend assigns `id`, which is unique in the backend. `item_id` need not be unique.
    """

    queue_id: str
    item_id: str
    id: str


class CallRef(NamedTuple):
    """A call of any instance."""

    item_id: str
    instance_id: str
    context: str
    """Its `traceparent`, or ''."""


class Grant(NamedTuple):
    """A granted slot."""

    fencing_token: int
    released_by: CallRef | None = None
    """The call that freed the slot; None if the slot was free, or if the call is not known."""
    waited: float = 0.0
    """Seconds from entering to the grant; set by the observing layer, by its own clock."""


class EnterResult(NamedTuple):
    """The reply to `enter`: granted (`grant`), waiting (`position` > 0), or refused (neither)."""

    ticket: Ticket
    grant: Grant | None
    position: int
    """1 is next; 0 when granted or refused."""
    depth: int
    """The number of waiters, including this call if it waits."""
    retry_after: float | None = None
    """Seconds; for a refused call, the expected wait if it is known."""
    place: float | None = None
    """For a waiter: the backend's own number by which the line is ordered."""
    resumed: bool = False
    """Whether the place that `EnterRequest.place_token` names was still kept, and was taken."""
    holders: tuple[CallRef, ...] = ()
    """For a waiter with a `context`: the first few holders."""

    @property
    def place_token(self) -> str:
        """For a waiter: the value for `EnterRequest.place_token` after `leave(keep_place=...)`."""
        # Made when it is asked for: most calls that wait never drop.
        return "" if self.place is None else encode(self.ticket.queue_id, self.ticket.id, self.place)


class LeaveResult(NamedTuple):
    """The result of `leave`."""

    was: State | None
    """The ticket's state before it left; None if it had ended already, or if that is not known."""
    granted_to: tuple[CallRef, ...] = ()


class QueueStats(NamedTuple):
    """A queue at one instant, over all instances."""

    waiting: int
    in_use: int
    limit: int
    """In force. 1, the default, for an empty queue without an override: its call sites' is not kept."""
    oldest_wait: float
    """Seconds of the longest wait, not necessarily the head's; 0.0 if nobody waits."""
    oldest_hold: float = 0.0
    """Seconds of the longest hold; 0.0 if nobody holds."""
    mean_hold: float | None = None
    """Seconds; the mean of recent holds, None while fewer than ten are known."""


class WaitStatus(NamedTuple):
    """The position of a waiter."""

    position: int
    """1 is next."""
    depth: int
    """The number of waiters."""
    waited: float
    """Seconds since it entered."""
    expected_wait: float | None
    """Seconds until its grant; None while fewer than ten holds are known or the queue is paused."""


class QueueEntry(NamedTuple):
    """One ticket, for introspection."""

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
    """A holder of this instance has lost its slot, or can no longer be sure that it has it."""

    ticket: Ticket
    reason: Literal["lapsed", "reaped", "evicted", "closed"]


class Reclaimed(NamedTuple):
    """This instance reaped a ticket of a dead instance."""

    queue_id: str
    item_id: str
    instance_id: str
    state: State
    context: str = ""


class LimitDisagreement(NamedTuple):
    """A call site of another instance named another limit. The last one named is in force."""

    queue_id: str
    previous: int
    current: int


class OverrideChanged(NamedTuple):
    """The limit was overridden elsewhere: by another instance, or by the command line."""

    queue_id: str
    limit: int | None
    """None: the override has ended."""


class Snapshot(NamedTuple):
    """A queue's shared state, emitted with every heartbeat.

    At most some hundred are emitted in one iteration of the event loop.
    """

    queue_id: str
    stats: QueueStats


class Left(NamedTuple):
    """The outcome of a `leave` that returned None."""

    ticket: Ticket
    result: LeaveResult
    confirmed: bool
    """False: no reply came, but a later `sync` has given the slot back, or the backend was closed."""


class Disrupted(NamedTuple):
    """The backend is unreachable or has lost its data. `reason` is one of a few fixed words."""

    reason: str
    detail: str
    lasts: bool = True
    """Whether the outage lasts until `Recovered`. False: it is over already; no event follows."""


class Recovered(NamedTuple):
    """Every part of the backend that was disrupted can be reached again."""

    outage: float
    """Seconds."""


class Heartbeat(NamedTuple):
    """One heartbeat of one queue has completed."""

    seconds: float
    outcome: Literal["ok", "error"]


BackendEvent: TypeAlias = (
    SlotLost
    | Reclaimed
    | LimitDisagreement
    | OverrideChanged
    | Snapshot
    | Left
    | Disrupted
    | Recovered
    | Heartbeat
)
Listener: TypeAlias = Callable[[BackendEvent], None]


@runtime_checkable
class QueueBackend(Protocol):
    """The interface that `Queue` needs.

    All methods except `lapsed` are called from one event loop. A coroutine can be cancelled at any
    await point; the docstrings state what holds then. Every coroutine but `flush` and
    `close` raises `BackendUnavailableError` if the backend does not reply in time or was closed. The
    backend enforces the limit and the order, and ends every ticket exactly once.
    """

    @property
    def name(self) -> str:
        """The kind of backend, used as a metric label: "memory", "redis"."""

    @property
    def instance_id(self) -> str:
        """Unique for this object among all that share its queues, now and after a restart."""

    @property
    def heartbeat_interval(self) -> float:
        """Seconds between two `Snapshot`s of a queue in use."""

    @property
    def store(self) -> str:
        """The name of the shared state: two backends with the same `store` see the same queues."""

    def listen(self, listener: Listener) -> None:
        """Pass every `BackendEvent` to `listener`, which must return at once and must not raise.

        Raises:
            RuntimeError: there is a listener already; a backend belongs to one `Queue`.
        """

    async def enter(self, request: EnterRequest) -> EnterResult:
        """Take a slot if one is free and nobody waits, otherwise a place in the line.

        If this raises or is cancelled, the ticket has ended and gives back what it got.
        """

    async def wait(self, ticket: Ticket, timeout: float | None) -> Grant:
        """Wait until `ticket` is granted. However this ends, the caller must call `leave` afterwards.

        Args:
            ticket: a ticket for which `enter` returned a position.
            timeout: seconds; None waits without a deadline.

        Raises:
            TimeoutError: not granted in time.
            EvictedError: the ticket was evicted.
            BackendUnavailableError: the backend was closed, or the place was lost in an outage.
        """

    def leave(self, ticket: Ticket, context: str = "", keep_place: float = 0.0) -> LeaveResult | None:
        """Give back the ticket's place or slot, and grant free slots to the heads of the line.

        Does not wait: commands are queued before it returns. It takes effect even if the caller is
        cancelled afterwards, at the latest when the backend is reached again or the lease lapses. It
        is idempotent. An unreachable backend raises no error.

        Args:
            ticket: in any state.
            context: `traceparent` of the hold, passed to the call that is granted the slot.
            keep_place: seconds for which a waiter's place is kept, see `EnterResult.place_token`.

        Returns:
            The result, or None if it is not known yet; then a `Left` event follows.
        """

    async def flush(self) -> None:
        """Wait until every `leave` has its `Left` event. Can be cancelled safely."""

    def lapsed(self, ticket: Ticket) -> bool:
        """Whether a holder has lost its slot, or can no longer be sure that it has it.

        True when this process knows that the ticket was evicted or reaped, that the backend was closed
        or that the lease has run out, and always after `SlotLost` was emitted for the ticket. Once
        true, it stays true. It is not called after `leave`. Thread-safe; it changes nothing.
        """

    async def set_limit(self, queue_id: str, limit: int | None) -> None:
        """Override the limit of a queue for all instances; None ends the override.

        If this raises, the limit might have been set.
        """

    async def stats(self, queue_id: str) -> QueueStats:
        """The state of the queue at this instant, over all instances."""

    async def wait_status(
        self, queue_id: str, wanted: Sequence[Ticket | str]
    ) -> list[WaitStatus | None]:
        """The status of each waiter in `wanted`; None for one that does not wait.

        Args:
            queue_id: the queue.
            wanted: tickets of this instance, or item_ids. If several waiters share an item_id, the
                first one of this instance counts, otherwise the first in line. O(log n) for each
                waiter of this instance, unless two of its calls share an id; else a scan of the line.
        """

    async def entries(self, queue_id: str) -> list[QueueEntry]:
        """The holders in the order of their grants, then the waiters in the order of the line."""

    async def evict(self, queue_id: str, item_id: str) -> int:
        """Remove all tickets of `item_id` from the queue. Returns their number.

        If this raises, the item might have been evicted.
        """

    async def ping(self) -> None:
        """Return if the backend replies."""

    async def close(self) -> None:
        """Give back everything this instance has, and stop. Waiters get `BackendUnavailableError`."""
