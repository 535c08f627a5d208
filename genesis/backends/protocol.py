"""The seam between the queue and where it is kept: `QueueBackend`, its values and its events.

States of a ticket, whatever the backend:

| state    | event                                   | next      |
|----------|-----------------------------------------|-----------|
| -        | `enter`, a slot is free, nobody waits   | holding   |
| -        | `enter`, otherwise                      | waiting   |
| -        | `enter`, `only_if_free` or the line full | refused  |
| waiting  | grant                                   | holding   |
| waiting  | `leave` (timeout, cancellation)         | abandoned |
| waiting  | evict                                   | evicted   |
| holding  | `leave`                                 | released  |
| holding  | lease lapsed, reaped                    | lost      |
| holding  | evict                                   | evicted   |

A backend is responsible for every transition but one: it never ends a ticket because of a caller's
timeout. A caller that gives up calls `leave`, and `leave` means the same in every state: *whatever
this ticket has, a place or a slot, is given back, and free slots are granted to the heads of the line
in the same atomic step*. So the race between a grant and a timeout or a cancellation needs no case of
its own: the ticket leaves, and if it was granted a moment before, the slot passes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

__all__ = [
    "BackendEvent",
    "CallRef",
    "Disrupted",
    "EnterRequest",
    "EnterResult",
    "Grant",
    "Heartbeat",
    "LeaveResult",
    "Left",
    "LimitDisagreement",
    "Listener",
    "QueueBackend",
    "QueueEntry",
    "QueueStats",
    "Reclaimed",
    "Recovered",
    "Refusal",
    "SlotLost",
    "Snapshot",
    "State",
    "Ticket",
    "WaitStatus",
    "new_tuple",
]

State: TypeAlias = Literal["waiting", "holding"]
Refusal: TypeAlias = Literal["busy", "full"]
"""Why a call was turned away: `only_if_free` and no slot was free; `max_waiting` calls already wait."""

new_tuple = tuple.__new__
"""`new_tuple(Type, (all, its, fields))` makes a named tuple at a third of the cost of calling the type;
for those made on the path of every call."""


class EnterRequest(NamedTuple):
    """What a caller asks for. The caller has checked every value."""

    queue_id: str
    item_id: str
    limit: int | None = None
    """The call site's limit; None takes the one in force, or 1."""
    only_if_free: bool = False
    """Take a slot now or be refused (`busy`); never wait."""
    context: str = ""
    """W3C `traceparent` of the caller, carried with the ticket and never read by the backend."""
    max_waiting: int | None = None
    """Be refused (`full`) if no slot is free and so many already wait."""
    head_start: float = 0.0
    """Seconds: the place is that of a call which entered so much earlier."""
    place_token: str = ""
    """From the `EnterResult` of an earlier ticket: take its kept place, if it still is kept."""
    timeout: float | None = None
    """Seconds within which the backend must answer. None, or more: its operation timeout."""


class Ticket(NamedTuple):
    """One passage of an item through a queue.

    `id` is the backend's own, and unique in it; `item_id` need not be.
    """

    queue_id: str
    item_id: str
    id: str


class CallRef(NamedTuple):
    """Another call, as it is known over all instances."""

    item_id: str
    instance_id: str
    context: str
    """Its `traceparent`, or ''."""


class Grant(NamedTuple):
    """A slot, given."""

    fencing_token: int
    released_by: CallRef | None = None
    """Whose leaving made room; None when a slot was free, or when it is not known."""
    waited: float = 0.0
    """Seconds from entering to the grant, filled in by the observing layer, which owns the clock."""


class EnterResult(NamedTuple):
    """The reply to `enter`: granted (`grant`), waiting (`position` > 0), or refused (`refusal`)."""

    ticket: Ticket
    grant: Grant | None
    position: int
    """1 is next; 0 when granted or refused."""
    depth: int
    """Waiters in the queue, this one included if it waits."""
    refusal: Refusal | None = None
    retry_after: float | None = None
    """Seconds; the expected wait of a call that was refused because the line is full, if known."""
    place_token: str = ""
    """Of a call that waits: what `EnterRequest.place_token` takes after `leave(keep_place=...)`."""
    resumed: bool = False
    """Whether the place that `EnterRequest.place_token` names was still kept, and taken."""
    holders: tuple[CallRef, ...] = ()
    """Of a call that waits and has a `context`: the first few that hold a slot."""


class LeaveResult(NamedTuple):
    """What `leave` did."""

    was: State | None
    """What the ticket gave back; None if it had nothing any more, or it is not known."""
    granted_to: tuple[CallRef, ...] = ()


class QueueStats(NamedTuple):
    """A queue at one instant, over all instances."""

    waiting: int
    in_use: int
    limit: int
    oldest_wait: float
    """Seconds of the longest wait, which need not be the head's; 0.0 if nobody waits."""
    oldest_hold: float = 0.0
    """Seconds of the longest hold; 0.0 if nobody holds."""
    mean_hold: float | None = None
    """Seconds; mean of the recent holds, None while fewer than ten are known."""


class WaitStatus(NamedTuple):
    """Where a waiter stands."""

    position: int
    """1 is next."""
    depth: int
    """Waiters in the queue."""
    waited: float
    """Seconds since it entered."""
    expected_wait: float | None
    """Seconds until its grant; None while too little is known, or the queue is paused."""


class QueueEntry(NamedTuple):
    """One ticket, as introspection shows it."""

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
    """This instance took back what a dead instance had."""

    queue_id: str
    item_id: str
    instance_id: str
    state: State
    context: str = ""


class LimitDisagreement(NamedTuple):
    """A call site of another instance named another limit; the one that came last is in force."""

    queue_id: str
    previous: int
    current: int


class Snapshot(NamedTuple):
    """A queue's shared state, reported with every heartbeat."""

    queue_id: str
    stats: QueueStats


class Left(NamedTuple):
    """The reply to a `leave` that returned None has come, or will never come."""

    ticket: Ticket
    result: LeaveResult
    confirmed: bool
    """False: no reply came. The slot is free, since a later message said or implied so."""


class Disrupted(NamedTuple):
    """The backend cannot be reached, or lost its data; `reason` is one of a few fixed words."""

    reason: str
    detail: str
    lasts: bool = True
    """Until `Recovered`. False: it is over already, and nothing follows."""


class Recovered(NamedTuple):
    """Everything that was disrupted is reached again."""

    outage: float
    """Seconds."""


class Heartbeat(NamedTuple):
    """One heartbeat of one queue is done."""

    seconds: float
    outcome: Literal["ok", "error"]


BackendEvent: TypeAlias = (
    SlotLost | Reclaimed | LimitDisagreement | Snapshot | Left | Disrupted | Recovered | Heartbeat
)
Listener: TypeAlias = Callable[[BackendEvent], None]


@runtime_checkable
class QueueBackend(Protocol):
    """What `Queue` needs of the place where its lines are kept.

    All methods are called from one event loop. Each coroutine may be cancelled at any await point;
    each docstring says what holds then. The limit, the order and the exactly-once ending of every
    ticket are the backend's to keep.
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

    @property
    def store(self) -> str:
        """Names the shared state: two backends with the same `store` see the same queues."""

    def listen(self, listener: Listener) -> None:
        """Hand every `BackendEvent` to `listener`, which returns at once and never raises.

        Raises:
            RuntimeError: there is a listener; a backend belongs to one `Queue`.
        """

    async def enter(self, request: EnterRequest) -> EnterResult:
        """Take a slot if one is free and nobody waits, otherwise a place in the line.

        If this raises or is cancelled, the ticket has ended: whatever it got is given back.

        Raises:
            BackendUnavailableError: the backend could not be reached in time.
        """

    async def wait(self, ticket: Ticket, timeout: float | None) -> Grant:
        """Wait until `ticket` is granted. However this ends, the caller calls `leave` afterwards.

        Args:
            ticket: one that `enter` left waiting.
            timeout: seconds; None waits as long as it takes.

        Raises:
            TimeoutError: not granted in time.
            EvictedError: somebody took the ticket out of the line.
            BackendUnavailableError: the backend was closed.
        """

    def leave(self, ticket: Ticket, context: str = "", keep_place: float = 0.0) -> LeaveResult | None:
        """Give back whatever `ticket` has, and grant the free slots to the heads of the line.

        Returns at once: what must be sent has been queued by then. Takes effect whatever becomes of
        the caller, at the latest when the backend is reached again or the lease lapses. Calling it
        twice has the effect of calling it once. Never raises because the backend is out of reach.

        Args:
            ticket: in any state.
            context: `traceparent` of the hold, for those who are granted its slot.
            keep_place: seconds for which the place of a waiter is kept, see `EnterResult.place_token`.

        Returns:
            What was done, or None if that is not known yet: then a `Left` event follows.
        """

    async def flush(self) -> None:
        """Wait until every `leave` has its `Left` event. May be cancelled."""

    def lapsed(self, ticket: Ticket) -> bool:
        """Whether a holder has no slot any more, or cannot prove that it has one, at this moment.

        It was evicted or reaped, the backend was closed, or the lease has run out, as far as this
        process can tell; in any case once `SlotLost` was emitted for it. Once true, it stays true.
        Not asked after `leave`. May be called from any thread, and changes nothing.
        """

    async def set_limit(self, queue_id: str, limit: int | None) -> None:
        """Override the limit of a queue for all instances; None ends the override."""

    async def stats(self, queue_id: str) -> QueueStats:
        """The queue at this instant, over all instances."""

    async def wait_status(
        self, queue_id: str, wanted: Sequence[Ticket | str]
    ) -> list[WaitStatus | None]:
        """Where waiters stand; None for one that does not wait.

        Args:
            queue_id: the queue's.
            wanted: own tickets, or item_ids: of several with one id the first, or the first of this
                instance if it has any. Own ones take O(log n) each, others a look at the line.
        """

    async def entries(self, queue_id: str) -> list[QueueEntry]:
        """The holders in the order of their grants, then the waiters in the order of the line."""

    async def evict(self, queue_id: str, item_id: str) -> int:
        """Take all tickets of `item_id` out of the queue; returns how many there were."""

    async def ping(self) -> None:
        """Return if the backend answers.

        Raises:
            BackendUnavailableError: it does not.
        """

    async def close(self) -> None:
        """Give back all that this instance has, and stop. Waiters get `BackendUnavailableError`."""
