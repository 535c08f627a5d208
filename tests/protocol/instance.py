"""The values of `caller`: calls, frozen tickets, frozen instances."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from genesis.backends.redis.core import QueueCore
from genesis.backends.redis.ticket import Command, LocalTicket, Output, Stage

__all__ = [
    "BrokenPromiseError",
    "Call",
    "Core",
    "Instance",
    "Step",
    "Ticket",
    "core_over",
    "frozen",
]


class BrokenPromiseError(Exception):
    """A promise was broken in the middle of a step."""


class Call(NamedTuple):
    """The constant properties of a ticket."""

    name: str
    owner: int
    max_waiting: bytes = b""
    keeps: bool = False  # if it gives up while waiting, its place might be kept
    takes: int = -1  # the call whose kept place it asks for
    limit: bytes = b"1"


class Ticket(NamedTuple):
    call: int
    stage: str = "e"
    number: int = 0
    wanted: bool = True
    sent: bool = False
    left: int = 0
    keep: bool = False
    back: bool = False
    place: int = 0
    resumed: bool = False
    kept: int = 0  # the place that it asks for
    view: str = "e"  # its call's view: e(ntering), w(aiting), h(olding), l(eft), x (Left came)


class Instance(NamedTuple):
    last_session: int
    alive: bool = True
    lapsed: bool = False  # by its clock its lease has lapsed, and it had no event since
    up: bool = True
    session: int = 0
    confirmed: int = 0
    lease: int = -1  # -1: inf, 1: runs, 0: has passed
    renewed: int = 0
    version: int = 0
    override: bytes = b""
    limit: bytes = b""
    failing: bool = False
    due: bool = False
    beating: bool = False
    beats: int = 0  # -1: a sync is due
    tickets: tuple[Ticket, ...] = ()


class Step(NamedTuple):
    """The result of an event: the instance afterwards, and the commands that it sent."""

    instance: Instance
    commands: tuple[Any, ...]


class Core(QueueCore):
    """The shipped core, recording its commands, its other output as (method, arguments), and its
    transitions."""

    commands: list[Command]
    verdicts: list[tuple[Any, ...]]
    moves: list[tuple[bytes, str, str]]
    last_session: int


def core_over(base: Any = QueueCore) -> type[Core]:
    def create(self: Any, *arguments: Any) -> None:
        base.__init__(self, *arguments)
        self.commands, self.verdicts, self.moves, self.last_session = [], [], [], 0

    def next_session(self: Any, above: int) -> int:
        self.last_session = max(self.last_session, above) + 1
        return int(self.last_session)

    def move(self: Any, ticket: LocalTicket, stage: Stage, number: int = 0) -> None:
        before = ticket.stage
        base._move(self, ticket, stage, number)
        if before is not stage:
            self.moves.append((ticket.id, before.name, stage.name))

    def recorded(name: str) -> Any:
        return lambda self, *arguments: self.verdicts.append((name, *arguments))

    names = [name for name, value in vars(Output).items() if inspect.isfunction(value)]
    output = {name: recorded(name) for name in names if not name.startswith("_")}
    output["send"] = lambda self, command: self.commands.append(command)
    own = {"__init__": create, "_move": move, "next_session": next_session}
    return type("Core", (base,), output | own)


def frozen(argument: bytes) -> Any:
    if argument.isdigit():
        return int(argument)
    head, _, last = argument.rpartition(b" ")
    return (head, int(last)) if last.isdigit() else argument
