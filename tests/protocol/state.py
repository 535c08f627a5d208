"""A state of the model, and its bounds."""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.protocol.instance import Call, Instance
from tests.protocol.server import Data

__all__ = ["Bound", "Faults", "Ghost", "Label", "State", "Wire", "order", "put"]

Label = tuple[Any, ...]


class Faults(NamedTuple):
    """The number of faults of each kind that can still occur."""

    breaks: int = 0
    kills: int = 0
    lapses: int = 0  # an instance is stopped for longer than its lease
    clock_steps: int = 0  # of Redis: a lease ends early
    early: int = 0  # an instance's lease lapses by its own clock
    evictions: int = 0  # by an outsider
    own_evictions: int = 0  # by an instance
    losses: int = 0  # Redis restarts empty
    flushes: int = 0  # it loses its data, connections stay
    stale: int = 0  # fail-over to a replica that lags behind
    moves: int = 0  # of the slot to the other server
    syncs: int = 0  # without a reason: the full heartbeat
    forgets: int = 0  # an idle instance's lease ends, and it forgets the queue
    prunes: int = 0  # the record of a reaped instance expires
    rejects: int = 0  # Redis replies with an error, and does nothing
    deaf: int = 0  # a message is lost, the connection is not
    expiries: int = 0  # a kept place expires
    replica: Data | None = None


class Ghost(NamedTuple):
    """Facts that no party knows; for the promises."""

    allowed: int = 1  # the maximum of holders: the limit, or those who held before it was lowered
    lost: int = 0  # 1: data was lost; 2: and an instance that knew it has synced
    exempt: bool = False  # the limit is exceeded in a documented case, see README.md
    synced: tuple[bool, ...] = ()  # since the loss
    evicted: tuple[int, ...] = ()
    kept: tuple[tuple[int, int], ...] = ()  # call that left its place, which
    used: tuple[tuple[int, int], ...] = ()  # ... and by which call it was taken


class Wire(NamedTuple):
    owner: int
    current: bool
    server: int = 0
    commands: tuple[Any, ...] = ()
    replies: tuple[Any, ...] = ()


class State(NamedTuple):
    redis: Data
    instances: tuple[Instance, ...]
    wires: tuple[Wire, ...]
    faults: Faults
    ops: tuple[
        int, ...
    ] = ()  # set_limits: 0 new, 1 done, otherwise the version that the command carries
    slot: int = 0  # the server of the queue
    ghost: Ghost = Ghost()


class Bound(NamedTuple):
    name: str
    calls: tuple[Call, ...]
    faults: Faults = Faults()
    ops: tuple[tuple[int, int | None], ...] = ()  # set_limits: instance or -1, limit
    page: int = 500
    portion: int = 500
    calm: bool = False  # no call gives up
    patience: bool = False  # only holders leave, each once
    limit: int = 1
    seconds: float = 0  # approximate duration


def put(items: tuple[Any, ...], index: int, item: Any) -> tuple[Any, ...]:
    return (*items[:index], item, *items[index + 1 :])


def order(wire: Wire) -> tuple[Any, ...]:
    return wire.owner, wire.current, wire.server, hash(wire.commands)
