"""The state of one queue of one instance: a protocol without I/O.

No socket, no clock, no task. Events go in as method calls, with the time where it matters. Commands to
send and results of tickets come out as calls of the methods of `Output`. README.md has the rules.

Stages of a ticket, as Redis has confirmed them; `wanted` is false once the call has left:

| stage    | event                                                   | next    | result  |
|----------|---------------------------------------------------------|---------|---------|
| ENTERING | reply to enter, sync                                    | HOLDING | granted |
| ENTERING | reply to enter, sync                                    | WAITING | waiting |
| ENTERING | reply to enter, sync: busy or full                      | ENDED   | refused |
| ENTERING | reply to enter, sync: either is an error                | ENDED   | failed  |
| ENTERING | reply to sync                                           | ENDED   | evicted |
| WAITING  | pushed; reply to enter, leave, beat, sync, limit, evict | HOLDING | granted |
| WAITING  | pushed; reply to evict, sync                            | ENDED   | evicted |
| HOLDING  | pushed; reply to evict, sync: evicted or reaped         | ENDED   | lost    |
| HOLDING  | lease lapsed: seen by any event                         | ENDED   | lost    |
| any      | reply to leave; reply to a sync without it              | (gone)  | left    |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, Literal

from genesis.backends import protocol
from genesis.backends.estimate import expected_wait
from genesis.backends.protocol import CallRef, LeaveResult, State
from genesis.backends.redis.members import mean_hold_of, parse_member, stats_of, ticket_of
from genesis.backends.redis.ticket import Command, LocalTicket, Output, Stage

BEATS_PER_LEASE = 3
_FULL_EVERY = 20  # heartbeats: then a sync, which compares everything
_RETRY = 0.25  # seconds after an error reply until the sync
_GRACE = 0.01  # seconds after a deadline of Redis, so that it has passed there
_TOKEN_MODULUS = 2**32
_WAS: dict[int, State | None] = {1: "holding", 2: "waiting", 3: None}


class QueueCore(Output):
    """Args: the queue; the lease (s); tickets per sync command.

    Invariants:
        a ticket is in `tickets` from `enter` until it has ended and left;
        `known` is the number of tickets WAITING or HOLDING, `held` the number HOLDING, `token_sum` the
        sum of their tokens. A heartbeat's reply is compared with them. They change with replies, not
        with calls, so they are Redis's state at the last reply read;
        `confirmed <= session`; they differ from the sending of a sync until its reply is read.
    """

    def __init__(self, queue_id: str, lease: float, page: int = 500) -> None:
        self.queue_id = queue_id
        self._lease = lease
        self._page = page
        self.tickets: dict[bytes, LocalTicket] = {}  # in the order of entering
        self.up = False
        self.session = 0  # carried by every command; 0 before the first sync
        self.confirmed = 0  # the last session whose sync got its reply
        self.lease_deadline = math.inf  # by the caller's clock; inf: no lease to check
        self.renewed = 0  # Redis's time of the last renewal that got its reply
        self.limit = b""  # of the call sites
        self.override = (0, b"")  # version, limit
        self.due = math.inf  # when to call `tick`, apart from `lease_deadline`
        self.known = self.held = self.token_sum = 0
        self.failing = False  # a command was rejected, and the lease was not renewed since
        self._beating = False
        self._beats = 0  # since the last sync
        self._unlisted = False  # a page of the last sync has found more than it removed

    # Events

    def enter(self, ticket: LocalTicket, now: float) -> None:
        """A call enters. Its command is queued, or left to the next sync, before this returns."""
        self._check_lease(now)
        self.tickets[ticket.id] = ticket
        if ticket.limit:
            self.limit = ticket.limit
        if not self.up:
            return  # the next sync will list it
        if self.session == 0 or self.due == math.inf:
            self._sync(now)  # first contact, or no heartbeats were sent while there was no ticket
            return
        ticket.sent = True
        arguments = (ticket.member, ticket.limit, ticket.max_waiting, ticket.kept)
        self.send(Command("enter", self.session, arguments, (ticket,), now))

    def leave(
        self, ticket: LocalTicket, now: float, context: bytes = b"", keep: float = 0, back: bool = False
    ) -> None:
        """A call leaves. Args: keep, seconds for its place; back, keep the place that it took again."""
        self._check_lease(now)
        if self.tickets.get(ticket.id) is not ticket or not ticket.wanted:
            return
        ticket.wanted = False
        if ticket.stage is Stage.ENDED or not ticket.sent:
            self._gone(ticket, LeaveResult(None), confirmed=True)
            return
        # A slot might be granted while the call is being cancelled.
        ticket.keep_until = now + keep if keep and ticket.place else 0.0
        ticket.back = back and ticket.kept != b""
        if self.up:
            ticket.left = self.session
            words = ticket.leave_arguments(context, now)
            self.send(Command("leave", self.session, words, (ticket,), now))

    def connected(self, now: float) -> None:
        """A new connection is up and has subscribed to this instance's channel."""
        self._check_lease(now)
        self.up = True
        if self.session or self.tickets:
            # Even without tickets: Redis might still run late commands of the last connection.
            self._sync(now)

    def disconnected(self) -> None:
        """The connection is down: no more replies. Redis might still run commands already sent."""
        self.up, self._beating, self.due = False, False, math.inf

    def tick(self, now: float) -> None:
        """`lease_deadline` or `due` has passed."""
        self._check_lease(now)
        if not self.up or now < self.due:
            return
        self.due = now + self._lease / BEATS_PER_LEASE if self.tickets else math.inf
        if self._beats < 0 or (self._beats >= _FULL_EVERY and self.confirmed == self.session):
            self._sync(now)
        elif self.tickets and self.confirmed == self.session and not self._beating:
            self._beating = True
            self._beats += 1
            self.send(Command("beat", self.session, (), (), now))

    def replied(self, command: Command, reply: Any, now: float) -> None:
        """A reply came, or an error reply as an exception."""
        self._check_lease(now)
        if command.session != self.session or not self.up:
            return  # the reply to the sync restores the state of every ticket
        if isinstance(reply, Exception):
            self._on_error(command, reply, now)
        elif reply[0] == 0:
            if self._beats >= 0:  # otherwise a sync is scheduled already, after a pause
                self._sync(now)
        elif command.name == "enter":
            self._on_enter(command.tickets[0], reply, now)
        elif command.name == "leave":
            self._on_leave(command.tickets[0], command.arguments[2], reply, now)
        elif command.name == "beat":
            self._on_beat(command, reply, now)
        elif reply[0] == -1:
            self._sync(now, above=reply[1])
        else:
            self._on_sync(command, reply, now)

    def pushed(self, kind: bytes, session: int, ticket_id: bytes, rest: bytes, now: float) -> None:
        """A message: `g` granted, `rest` is `<token> <the call that left, or ''>`; `e` evicted."""
        self._check_lease(now)
        ticket = self.tickets.get(ticket_id)
        if session != self.session or not self.up or ticket is None:
            return
        if kind == b"g":
            token, _, origin = rest.partition(b" ")
            self._grant(ticket, int(token), parse_member(origin) if origin else None)
        elif kind == b"e":
            self._evict(ticket)

    def sync_soon(self, now: float) -> None:
        """Send a sync with the next `tick`, because this instance and Redis might disagree."""
        self._beats, self.due = -1, now

    def asked(self, script: str, session: int, words: Sequence[bytes], reply: Any, now: float) -> None:
        """The reply to `limit`, `evict` or `stats`; `session` is the core's when it was sent."""
        self._check_lease(now)
        head, *effects = reply[:4]
        if not effects:
            return
        if script == "limit":
            self._know_override(int(head), words[1], own=True)
        elif script == "evict" and head:  # Redis pushes no message to the caller
            self.pushed(b"e", session, ticket_of(words[0]), b"", now)
        # These scripts check no session. If a sync was rejected, others might reap what they grant.
        granted, reclaimed, look = effects
        current = self.up and session == self.session == self.confirmed
        self._take((granted if current else (), reclaimed, look), now)

    def _take(
        self, effects: Sequence[Any], now: float, by: CallRef | None = None
    ) -> tuple[CallRef, ...]:
        """Apply the end of a script's reply: grants, reclaimed tickets. Returns the granted calls."""
        granted, reclaimed, look = effects
        freed = [] if by is None else [by]  # who freed the granted slots, in order, as in Lua
        freed += [parse_member(member) for was, member in reclaimed if was == b"holding"]
        for (member, token), origin in zip_longest(granted, freed[: len(granted)]):
            if (ticket := self.tickets.get(ticket_of(member))) is not None:
                self._grant(ticket, int(token), origin)
        for state, member in reclaimed:
            was: State = "holding" if state == b"holding" else "waiting"
            item_id, owner, context = parse_member(member)
            self.emit(protocol.Reclaimed(self.queue_id, item_id, owner, was, context))
        if self.up and look >= 0:  # when a lease lapses or a window ends; negative: not needed
            self.due = min(self.due, now + look / 1e6 + _GRACE)
        return tuple(parse_member(member) for member, _ in granted)

    @property
    def idle(self) -> bool:
        """Whether this object can be dropped: no tickets, and no late command can have an effect."""
        return not self.tickets and (self.session == 0 or (self.up and self.lease_deadline == math.inf))

    # Sync

    def _sync(self, now: float, above: int = 0) -> None:
        self.session = self.next_session(above)
        self._beating, self._beats, self._unlisted = False, 0, False
        self.due = now + self._lease / BEATS_PER_LEASE
        # Set before the reply: a grant read more than a lease from now must not be trusted.
        self.lease_deadline = min(self.lease_deadline, now + self._lease)
        version, override = self.override
        known = (b"%d" % self.confirmed, b"%d" % self.renewed, override, b"%d" % version, self.limit)
        listed = [ticket for ticket in self.tickets.values() if ticket.listed]
        for start in range(0, max(1, len(listed)), self._page):
            page = tuple(listed[start : start + self._page])
            last = start + self._page >= len(listed)
            arguments = [*known, listed[start - 1].member if start else b""]
            arguments.append(b"" if last else page[-1].member)
            for ticket in page:
                ticket.sent = True
                arguments += ticket.row(now)
            self.send(Command("sync", self.session, tuple(arguments), page, now, last))

    def _on_sync(self, command: Command, reply: Sequence[Any], now: float) -> None:
        _, redis_now, override, version, numbers, rows, lost, previous, holders, more, *effects = reply
        self._know_override(int(version), override)
        if lost:
            detail = f"queue {self.queue_id!r} registers {len(self.tickets)} tickets again"
            self.emit(protocol.Disrupted("data_lost", detail, lasts=False))
        self._disagree(previous, self.limit)
        for ticket, row in zip(command.tickets, rows, strict=True):
            self._judged(ticket, row, numbers[0], int(numbers[2]), holders)
        self._take(effects, now)
        self._unlisted = self._unlisted or more == 1
        if not command.last:
            return
        self.confirmed = command.session
        self._renewed(command, redis_now)
        # Their `leave` was sent in an older session or never, but Redis removes what no sync lists.
        for ticket in [t for t in self.tickets.values() if not t.wanted and t.left != command.session]:
            self._gone(ticket, LeaveResult(None), confirmed=False)
        if self._unlisted:
            self.sync_soon(now)

    def _renewed(self, command: Command, redis_now: int) -> None:
        self.renewed, self.failing = redis_now, False
        self.lease_deadline = command.sent + self._lease

    def _know_override(self, version: int, limit: bytes, *, own: bool = False) -> None:
        """Learn the override of the queue; the greatest version wins. Args: own, it was set here."""
        if version > self.override[0]:
            if self.confirmed and limit != self.override[1] and not own:  # no news at first contact
                self.emit(protocol.OverrideChanged(self.queue_id, int(limit) if limit else None))
            self.override = (version, limit)

    def _disagree(self, previous: bytes, limit: bytes) -> None:
        if previous:
            self.emit(protocol.LimitDisagreement(self.queue_id, int(previous), int(limit)))

    def _judged(
        self, ticket: LocalTicket, row: Sequence[int], depth: int, limit: int, holders: Sequence[bytes]
    ) -> None:
        """A row of the reply to `enter` or to a sync, see `admit` in library.lua, and sync.lua."""
        code, number, *more = row
        ticket.resumed = ticket.resumed or (code in (1, 2) and more[:1] == [1])
        if code == 1:
            self._grant(ticket, number, None)
        elif code == 2:
            entering = ticket.stage is Stage.ENTERING
            self._move(ticket, Stage.WAITING, number)
            if entering and ticket.wanted:
                calls = tuple(map(parse_member, holders)) if ticket.asks_who else ()
                self.waiting(ticket, more[1], depth, calls)
        elif code == 3:
            self._move(ticket, Stage.ENDED)
            if ticket.wanted:
                retry_after = expected_wait(depth + 1, limit, mean_hold_of(*more))
                self.refused(ticket, depth, retry_after)
        elif code == 5:
            self._evict(ticket)
        elif code == 6:
            self._lose(ticket, "reaped")
        elif code == 7:
            self._gone(ticket, LeaveResult(_WAS[number]), confirmed=True)

    # Replies

    def _on_enter(self, ticket: LocalTicket, reply: Sequence[Any], now: float) -> None:
        row, depth, limit, previous, *rest = reply
        holders: Sequence[bytes] = ()
        if rest:
            *effects, holders = rest
            self._take(effects, now)
        self._disagree(previous, ticket.limit)
        self._judged(ticket, row, depth, int(limit), holders)

    def _on_leave(self, ticket: LocalTicket, origin: bytes, reply: Sequence[Any], now: float) -> None:
        was, *effects = reply
        by = parse_member(origin) if was == 1 else None  # a waiter that leaves frees no slot
        granted = self._take(effects, now, by) if effects else ()
        # The first, as in `_take`: what else was granted was freed by others.
        self._gone(ticket, LeaveResult(_WAS[was], granted[:1] if by else ()), confirmed=True)

    def _on_beat(self, command: Command, reply: Sequence[Any], now: float) -> None:
        _, redis_now, override, version, numbers, count, held, total, *effects = reply
        self._beating = False
        self._renewed(command, redis_now)
        self._know_override(int(version), override)
        self._take(effects, now)
        self.emit(protocol.Heartbeat(now - command.sent, "ok"))
        self.emit(protocol.Snapshot(self.queue_id, stats_of(numbers)))
        same = held < 0 or (held, int(total)) == (self.held, self.token_sum)
        if count != self.known or not same:
            self._sync(now)

    def _on_error(self, command: Command, error: Exception, now: float) -> None:
        # A sync repairs a half-finished script. Pause first: the cause will probably persist.
        self._beating = False
        self._beats, self.due = -1, now + _RETRY
        if command.name == "beat":
            self.emit(protocol.Heartbeat(now - command.sent, "error"))
        if command.name != "enter":
            self.failing = True
            self.rejected(command.name, error)
        for ticket in command.tickets:
            if ticket.stage is Stage.ENTERING and ticket.wanted:
                self._move(ticket, Stage.ENDED)
                self.failed(ticket, error)

    # Tickets

    def _check_lease(self, now: float) -> None:
        if now < self.lease_deadline:
            return
        self.lease_deadline = math.inf
        for ticket in self.tickets.values():
            if ticket.stage is Stage.HOLDING:
                self._lose(ticket, "lapsed")
            elif ticket.stage is Stage.WAITING and ticket.wanted and (self.failing or not self.up):
                self.out_of_reach(ticket)
        if self.up and self.tickets:
            self._sync(now)
        else:
            self.due = math.inf

    def _grant(self, ticket: LocalTicket, token: int, by: CallRef | None) -> None:
        if ticket.stage is Stage.ENDED:
            return
        news = ticket.stage is not Stage.HOLDING and ticket.wanted
        self._move(ticket, Stage.HOLDING, token)
        if news:
            self.granted(ticket, by)

    def _evict(self, ticket: LocalTicket) -> None:
        if ticket.stage is Stage.HOLDING:
            self._lose(ticket, "evicted")
        elif ticket.stage is not Stage.ENDED:
            self._move(ticket, Stage.ENDED)
            if ticket.wanted:
                self.evicted(ticket)

    def _lose(self, ticket: LocalTicket, reason: Literal["lapsed", "reaped", "evicted"]) -> None:
        self._move(ticket, Stage.ENDED)
        if ticket.wanted:
            self.lost(ticket, reason)

    def _gone(self, ticket: LocalTicket, result: LeaveResult, *, confirmed: bool) -> None:
        self._move(ticket, Stage.ENDED)
        del self.tickets[ticket.id]
        self.left(ticket, result, confirmed)

    def _move(self, ticket: LocalTicket, stage: Stage, number: int = 0) -> None:
        """Change the stage. Nothing else does."""
        self._count(ticket, -1)
        ticket.stage, ticket.number = stage, number
        ticket.place = number if stage is Stage.WAITING else ticket.place
        self._count(ticket, 1)

    def _count(self, ticket: LocalTicket, sign: int) -> None:
        if ticket.stage is Stage.HOLDING:
            self.held += sign
            self.token_sum += sign * (ticket.number % _TOKEN_MODULUS)
        if ticket.stage is Stage.HOLDING or ticket.stage is Stage.WAITING:
            self.known += sign
