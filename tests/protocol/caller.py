"""Runs one event of an instance: the shipped core is thawed, gets the event, and is frozen again.

`Caller` does what the backend does around the core, and no more: it passes commands on, and after a
verdict that ends a ticket its call leaves at once. It checks the verdicts: each call must get only
those that its stage allows, in order, and end exactly once.
"""

from __future__ import annotations

import math
from typing import Any

from genesis.backends.redis import core as core_module
from genesis.backends.redis.core import QueueCore
from genesis.backends.redis.members import make_member, ticket_of
from genesis.backends.redis.ticket import Command, LocalTicket, Stage
from tests.protocol.instance import (
    BrokenPromiseError,
    Call,
    Core,
    Instance,
    Step,
    Ticket,
    core_over,
    frozen,
)
from tests.protocol.server import KEPT_FOR, LEASE

__all__ = ["Caller"]

LATE = 1000.0  # the time of a lapsed instance's next event; all other events are at 0.0
STAGES = {stage.value: stage for stage in Stage}


class Caller:
    """All instances of one exploration; results for equal (instance, event) pairs are cached."""

    def __init__(
        self, calls: tuple[Call, ...], page: int = 500, core: type[Core] | None = None
    ) -> None:
        self.calls, self.page = calls, page
        self.core_class = core or core_over()
        serials = [
            sum(other.owner == call.owner for other in calls[:k]) for k, call in enumerate(calls)
        ]
        self.members = [
            make_member("abc"[call.owner], serial, 0, "", call.name)
            for call, serial in zip(calls, serials, strict=True)
        ]
        self.ids = [ticket_of(member) for member in self.members]
        self.by_member = {member: k for k, member in enumerate(self.members)}
        self.by_id = {name: k for k, name in enumerate(self.ids)}
        self.known: dict[Any, Step | str] = {}
        self.transitions: set[tuple[str, str, str, str]] = set()  # event, stage, next, verdict

    def step(self, i: int, instance: Instance, event: tuple[Any, ...]) -> Step:
        key = (i, instance, event)
        step = self.known.get(key)
        if step is None:
            try:
                step = self._step(i, instance, event)
            except BrokenPromiseError as wrong:
                step = str(wrong)
            self.known[key] = step
        if isinstance(step, str):
            raise BrokenPromiseError(step)
        return step

    # Thaw, freeze

    def ticket(self, frozen: Ticket, now: float) -> LocalTicket:
        call = self.calls[frozen.call]
        kept = b"%s %d" % (self.ids[call.takes], frozen.kept) if frozen.kept else b""
        ticket = LocalTicket(
            self.members[frozen.call],
            call.limit,
            call.max_waiting,
            kept,
        )
        ticket.stage, ticket.number, ticket.wanted = STAGES[frozen.stage], frozen.number, frozen.wanted
        ticket.sent, ticket.left, ticket.place = frozen.sent, frozen.left, frozen.place
        ticket.keep_until, ticket.back = now + KEPT_FOR / 1e6 if frozen.keep else 0.0, frozen.back
        ticket.resumed = frozen.resumed
        return ticket

    def thaw(self, i: int, frozen: Instance, now: float) -> tuple[Core, dict[int, LocalTicket]]:
        core = self.core_class("q", LEASE, self.page)
        core.last_session = frozen.last_session
        core.up, core.session, core.confirmed = frozen.up, frozen.session, frozen.confirmed
        core.lease_deadline = {-1: math.inf, 1: float(LEASE), 0: -1.0}[frozen.lease]
        core.renewed, core.limit, core.failing = frozen.renewed, frozen.limit, frozen.failing
        core.override = (frozen.version, frozen.override)
        core.due = LEASE / 3 if frozen.due else math.inf
        core._beating, core._beats = frozen.beating, frozen.beats
        tickets = {}
        for row in frozen.tickets:
            ticket = tickets[row.call] = self.ticket(row, now)
            if row.view != "x":
                core.tickets[ticket.id] = ticket
        count(core)
        return core, tickets

    def freeze(
        self, core: Core, tickets: dict[int, LocalTicket], views: dict[int, str], lapsed: bool
    ) -> Instance:
        known = (core.known, core.held, core.token_sum)
        count(core)
        if known != (core.known, core.held, core.token_sum):
            raise BrokenPromiseError(
                f"the core counts {known}, and has {core.known, core.held, core.token_sum}"
            )
        rows = []
        for ticket in core.tickets.values():
            k = self.by_id[ticket.id]
            rows.append(
                Ticket(
                    k, ticket.stage.value, ticket.number, ticket.wanted, ticket.sent,
                    ticket.left, ticket.keep_until > 0, ticket.back, ticket.place, ticket.resumed,
                    int(ticket.kept.split(b" ")[1]) if ticket.kept else 0, views[k],
                )
            )  # fmt: skip
        for k in sorted(tickets):
            if views[k] == "x":
                rows.append(Ticket(k, "x", wanted=False, view="x"))
        deadline = core.lease_deadline
        return Instance(
            core.last_session, True, lapsed, core.up, core.session, core.confirmed,
            -1 if deadline == math.inf else 1 if deadline > 0 else 0, core.renewed, *core.override,
            core.limit, core.failing, core.due < math.inf, core._beating, min(core._beats, 0),
            tuple(rows),
        )  # fmt: skip

    # One event

    def _step(self, i: int, instance: Instance, event: tuple[Any, ...]) -> Step:
        now = LATE if instance.lapsed else 0.0
        core, tickets = self.thaw(i, instance, now)
        views = {row.call: row.view for row in instance.tickets}
        lapsed = instance.lapsed
        name = event[0]
        self.leaving = event[1] if name == "leave" else -1
        if name == "disconnected":
            core.disconnected()
        else:
            lapsed = False
            try:
                self._event(core, tickets, views, event, now, i)
            except (
                KeyError,
                ValueError,
                TypeError,
                IndexError,
                AttributeError,
                AssertionError,
            ) as error:
                raise BrokenPromiseError(f"the core raised {error!r}") from error
        self._judge(core, views, event_name(event), now)
        if now and core.lease_deadline < math.inf:
            core.lease_deadline = -1.0 if core.lease_deadline <= now else LEASE
        if name == "forget":
            if not core.idle:
                raise BrokenPromiseError("not idle")
            return Step(Instance(core.last_session, tickets=instance.tickets), ())
        for ticket in core.tickets.values():
            k = self.by_id[ticket.id]
            stage, view = ticket.stage.value, views[k]
            if ticket.wanted and stage != view:
                raise BrokenPromiseError(
                    f"{self.calls[k].name} is {stage}, and its call was told {view}"
                )
        commands = tuple(self._frozen_command(command) for command in core.commands)
        return Step(self.freeze(core, tickets, views, lapsed), commands)

    def _frozen_command(self, command: Command) -> tuple[Any, ...]:
        arguments = tuple(frozen(argument) for argument in command.arguments)
        return (
            command.name,
            command.session,
            1,
            arguments,
            tuple(self.by_id[t.id] for t in command.tickets),
            command.last,
        )

    def _event(
        self,
        core: Core,
        tickets: dict[int, LocalTicket],
        views: dict[int, str],
        event: Any,
        now: float,
        i: int,
    ) -> None:
        name, *rest = event
        if name == "enter":
            k, place = rest
            tickets[k], views[k] = self.ticket(Ticket(k, kept=place), now), "e"
            core.enter(tickets[k], now)
        elif name == "leave":
            k, keep = rest
            # A call that leaves before the reply has taken no place, from its caller's view.
            core.leave(tickets[k], now, b"", KEPT_FOR / 1e6 if keep else 0.0, views[k] == "e")
        elif name == "connected":
            core.connected(now)
        elif name in ("tick", "forget"):
            core.tick(now or (core.due if core.due < math.inf else 1.0))
        elif name == "sync soon":
            core.sync_soon(now)
            core.tick(now)
        elif name == "push":
            kind, session, ticket, token = rest
            core.pushed(kind, session, ticket, b"%d " % token if kind == b"g" else b"", now)
        else:
            self._reply(core, tickets, rest[0], rest[1], now, i)

    def _reply(
        self,
        core: Core,
        tickets: dict[int, LocalTicket],
        command: Any,
        reply: Any,
        now: float,
        i: int,
    ) -> None:
        name, session, sent, arguments, handles, last = command
        if name in ("limit", "evict"):
            if reply != ("error",):
                head, *effects = reply
                more = self._effects(*effects) if effects else []
                core.asked(name, session, arguments, [head, *more], now)
            return
        words = (b"", b"", b"x:1 0  x" if name == "leave" else b"", b"", b"")
        thawed = Command(
            name, session, words, tuple(tickets[k] for k in handles), 0.0 if sent else -1000.0, last
        )
        core.replied(thawed, self._wordy(name, reply), now)

    def _effects(self, granted: Any, look: int) -> list[Any]:
        wait = {0: 0, 1: 1_000_000, -1: -1}
        return [[(member, b"%d" % token) for member, token in granted], [], wait[look]]

    def _wordy(self, name: str, reply: Any) -> Any:
        """The reply with everything that `plain` omitted."""
        numbers = [0, 0, b"1", 0, 0, 0, 0]
        if reply == ("error",):
            return RuntimeError("rejected")
        if len(reply) == 1:
            return [*reply]
        if name == "enter":
            row, granted, look = reply
            return [self._row(row), 0, b"1", b"", *self._effects(granted, look), []]
        if name == "leave":
            return [reply[0], *self._effects(*reply[1:])]
        if name == "beat":
            _, now, look, count, tokens, override, version, granted = reply
            held = -1 if tokens is None else len(tokens)
            total = b"%d" % sum(token % 2**32 for token in tokens or ())
            head = [1, now, override, b"%d" % version, numbers, count, held, total]
            return [*head, *self._effects(granted, look)]
        if reply[0] == -1:
            return list(reply)
        _, now, look, rows, override, version, more, lost, granted = reply
        head = [1, now, override, b"%d" % version, numbers, [self._row(row) for row in rows]]
        return [*head, lost, b"", [], more, *self._effects(granted, look)]

    def _row(self, row: Any) -> list[Any]:
        if row[0] == 3:
            return [*row, 0, 0]
        return [*row, 1] if row[0] == 2 and len(row) == 3 else list(row)

    def _judge(self, core: Core, views: dict[int, str], event: str, now: float) -> None:
        """Check and deliver the verdicts; calls that were ended leave at once."""
        allowed = {
            "granted": "ew",
            "waiting": "e",
            "refused": "e",
            "failed": "e",
            "evicted": "ew",
            "lost": "h",
            "out_of_reach": "w",
        }
        then = {"granted": "h", "waiting": "w", "out_of_reach": "w"}
        said: dict[int, list[tuple[str, str]]] = {}
        moves = [(self.by_id[name], before, after) for name, before, after in core.moves]
        leaving = self.leaving
        while core.verdicts:
            verdicts, core.verdicts = core.verdicts, []
            for kind, *details in verdicts:
                if kind in ("emit", "rejected"):
                    continue
                ticket = details[0]
                k = self.by_id[ticket.id]
                who, view = self.calls[k].name, views[k]
                lapsed = details[1:] == ["lapsed"]
                said.setdefault(k, []).append((kind, "lease lapsed" if lapsed else event))
                if k == leaving and kind == "left":
                    view = "l"
                if kind == "left":
                    if view != "l":
                        raise BrokenPromiseError(
                            f"{who} gets left, and {'has left' if view == 'x' else 'did not leave'}"
                        )
                    views[k] = "x"
                elif view not in allowed[kind]:
                    raise BrokenPromiseError(f"{who} gets {kind} after it was told {view}")
                else:
                    if kind == "granted" and now >= core.lease_deadline:
                        raise BrokenPromiseError(f"limit: {who} is granted after the lease has lapsed")
                    views[k] = then.get(kind, "l")
                    if views[k] == "l" and k != leaving:
                        core.leave(ticket, now)
        if leaving >= 0 and views[leaving] != "x":
            views[leaving] = "l"
        for k, before, after in moves:
            told = [pair for pair in said.get(k, ()) if pair[0] != "left"]
            what, cause = told[0] if told else ("", event)
            self.transitions.add((cause, before, after, what))
            if told:
                said[k].remove(told[0])


def event_name(event: tuple[Any, ...]) -> str:
    """The event's name in the table at the top of core.py."""
    if event[0] != "reply":
        return {"push": "pushed"}.get(event[0], str(event[0]))
    return f"reply to {event[1][0]}"


def count(core: QueueCore) -> None:
    """Recount the tickets, and compare with the core's own counts."""
    held = [ticket for ticket in core.tickets.values() if ticket.stage is Stage.HOLDING]
    waiting = [ticket for ticket in core.tickets.values() if ticket.stage is Stage.WAITING]
    core.known, core.held = len(held) + len(waiting), len(held)
    core.token_sum = sum(ticket.number % core_module._TOKEN_MODULUS for ticket in held)
