"""What Redis has, read after each command, and what may change in it by one.

`Truth` is one queue as it stands; `Books` follows all queues of a schedule, and insists that each
change keeps the promises: the limit, the order of entering, growing tokens, no free slot with a waiter,
and the invariants that `line.lua` names.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from genesis.backends.redis.keys import queue_keys
from genesis.backends.redis.scripts import SCRIPT_NAMES, load
from tests.schedules.calls import Violation
from tests.schedules.wire import Command, pack

__all__ = ["Books", "Truth", "name_of"]

_SCRIPTS = {load(name).sha: name for name in SCRIPT_NAMES}
_GRANTING = ("enter", "evict", "heartbeat", "leave", "limit", "reap", "restore")
_REPLIES = 4  # of a queue's look, besides one an instance


@dataclass
class Truth:
    """One queue in Redis, at one moment."""

    waiting: list[str] = field(default_factory=list)  # in the order of the line
    holding: dict[str, int] = field(default_factory=dict)  # ticket -> token, in the order of grants
    limit: int = 1
    overridden: bool = False
    recovering: bool = False  # grants are held back, after a loss of data
    epoch: bytes = b""
    leases: list[str] = field(default_factory=list)
    books: dict[str, list[str]] = field(default_factory=dict)  # instance -> its tickets

    def has(self, ticket: str) -> bool:
        return ticket in self.holding or ticket in self.waiting


def name_of(command: Command) -> str:
    """What a command is: a script's name, or the command's own."""
    if command[0] == b"EVALSHA":
        return _SCRIPTS.get(command[1], "an unknown script")
    return command[0].decode().lower()


class _Change(NamedTuple):
    """What a violation was; put into words only if there is one."""

    kind: str
    queue_id: str
    before: Truth
    now: Truth

    def __str__(self) -> str:
        return f"{self.kind} in {self.queue_id}: {self.before} -> {self.now}"


class Books:
    """What every queue has, and whether each change was right.

    Args:
        alive: whether a ticket's own instance still knows of it, and has not lost it.
    """

    def __init__(
        self, prefix: str, queues: Sequence[str], instances: Sequence[str], alive: Callable[[str], bool]
    ) -> None:
        self.queues = {queue_id: Truth() for queue_id in queues}
        self.keys = {queue_id: queue_keys(prefix, queue_id) for queue_id in queues}
        self.grants: dict[str, set[int]] = {}  # ticket -> every token it was ever granted
        self.evicted: set[str] = set()
        self.out_of_memory = False  # a script may then be broken off half way
        self.lapsed: set[tuple[str, str]] = set()  # queue and instance whose lease has run out
        self.history: list[str] = []
        self._bare_leases: set[tuple[str, str]] = set()
        self._by_key = {keys[0]: queue_id for queue_id, keys in self.keys.items()}
        self._instances = list(instances)
        self._alive = alive
        self._arrivals: dict[str, int] = {}
        self._serials = itertools.count()
        self._tokens: dict[str, int] = {}  # the highest, by queue
        self._survivors: dict[str, list[str]] = {}  # of a loss of data, not registered again yet
        parts = []
        for meta, waiting, holding, leases in self.keys.values():
            base = meta[: -len(b"meta")]
            parts += [
                pack(("ZRANGE", waiting, 0, -1)),
                pack(("ZRANGE", holding, 0, -1, "WITHSCORES")),
                pack(("HMGET", meta, "override", "limit", "until", "epoch")),
                pack(("ZRANGE", leases, 0, -1)),
                *(pack(("HKEYS", base + b"at:" + name.encode())) for name in instances),
            ]
        self.probe = b"".join(parts)
        self.probed = len(parts)

    def queue_of(self, command: Command) -> str | None:
        return self._by_key.get(command[3]) if command[0] == b"EVALSHA" else None

    def survivors(self, queue_id: str) -> list[str]:
        """Who was there when Redis lost its data, is still wanted, and not yet registered again."""
        left = self._survivors.get(queue_id)
        if left:
            now = self.queues[queue_id]
            left = [t for t in left if self._alive(t) and not now.has(t)]
            self._survivors[queue_id] = left
        return left or []

    def lost(self) -> None:
        """Redis has lost its data."""
        for queue_id, before in self.queues.items():
            there = [*self.survivors(queue_id), *before.waiting, *before.holding]
            self._survivors[queue_id] = [t for t in there if self._alive(t)]
            self.queues[queue_id] = Truth()

    def look(self, looks: list[Any]) -> dict[str, Truth]:
        """What the replies to the probe say."""
        found = {}
        width = _REPLIES + len(self._instances)
        for number, queue_id in enumerate(self.queues):
            waiting, holding, meta, leases, *books = looks[number * width : (number + 1) * width]
            override, limit, until, epoch = meta
            found[queue_id] = Truth(
                [raw.decode() for raw in waiting],
                {raw.decode(): int(token) for raw, token in holding},
                int(override if override is not None else limit or 1),
                override is not None,
                until is not None and until != b"1",
                epoch or b"",
                sorted(raw.decode() for raw in leases),
                {
                    name: [raw.decode() for raw in book]
                    for name, book in zip(self._instances, books, strict=True)
                    if book
                },
            )
        return found

    def changed(self, command: Command, reply: Any, looks: list[Any]) -> None:
        """Take in what there is after a command, and insist that it could become so.

        Raises:
            Violation: it could not.
        """
        kind, queue_id = name_of(command), self.queue_of(command)
        found = self.look(looks)
        for other, truth in found.items():
            if other != queue_id and truth != self.queues[other]:
                raise Violation(
                    f"{kind} in {queue_id} changed {other}: {self.queues[other]} -> {truth}"
                )
        if queue_id is None:
            return
        before, now = self.queues[queue_id], found[queue_id]
        about = _Change(kind, queue_id, before, now)
        if isinstance(reply, Exception):
            if now != before and not self.out_of_memory:
                raise Violation(f"it was refused ({reply}), and had an effect: {about}")
            if now == before:
                return
        self.queues[queue_id] = now
        word = command[7].decode() if len(command) > 7 else ""
        failed = isinstance(reply, Exception)
        if kind == "heartbeat" and not failed and reply[5]:
            self._bare_leases.add((queue_id, word))
        self._keep_the_invariants(queue_id, now, about)
        if kind == "enter":
            self._arrive(command[7].decode(), before, now)
        self._keep_the_order(before, now, about)
        self._grant(kind, queue_id, before, now, about)
        if kind == "evict" and before.has(word):
            self.evicted.add(word)
        if kind == "leave" and now.has(word):
            raise Violation(f"it left, and is there: {about}")
        for ticket in [*before.waiting, *before.holding]:
            by_name = kind in ("leave", "evict") and ticket == word
            if not now.has(ticket) and not by_name and (queue_id, _owner(ticket)) not in self.lapsed:
                raise Violation(f"{ticket} was taken out: {about}")
        self.lapsed = {
            (queue, name)
            for queue, name in self.lapsed
            if queue != queue_id or (name in now.leases and not self._renewed(kind, word, name, before))
        }
        repeated = kind == "enter" and before.has(word)
        in_vain = kind == "evict" and not before.has(word)
        if failed or kind not in _GRANTING or repeated or in_vain:
            return  # it tells, and changes nothing; a window that has just ended is for the next beat
        # A beat that finds tickets unknown grants nothing; their owner registers them next.
        held_back = now.recovering or (kind == "heartbeat" and reply[5]) or self.survivors(queue_id)
        if now.waiting and len(now.holding) < now.limit and not held_back:
            raise Violation(f"a slot is free, and somebody waits: {about}")

    def _renewed(self, kind: str, word: str, name: str, before: Truth) -> bool:
        """Whether this command renewed the lease of an instance."""
        if kind == "enter":  # one that is said again finds its ticket, and renews nothing
            return _owner(word) == name and not before.has(word)
        return kind in ("heartbeat", "restore") and word == name

    def _keep_the_invariants(self, queue_id: str, now: Truth, about: _Change) -> None:
        tickets = [*now.waiting, *now.holding]
        booked = [ticket for book in now.books.values() for ticket in book]
        if len(set(tickets)) != len(tickets) or sorted(tickets) != sorted(booked):
            raise Violation(f"tickets {tickets}, but booked {booked}: {about}")
        for name in sorted(set(now.leases) ^ set(now.books)):
            if name in now.leases and (queue_id, name) in self._bare_leases:
                continue  # it beat for what it has lost here; see line.lua
            raise Violation(f"leases of {now.leases}, books of {list(now.books)}: {about}")

    def _arrive(self, ticket: str, before: Truth, now: Truth) -> None:
        if now.has(ticket) and not before.has(ticket):
            self._arrivals[ticket] = next(self._serials)
            self.history.append(f">{ticket}")

    def _keep_the_order(self, before: Truth, now: Truth, about: _Change) -> None:
        places = [self._arrivals[ticket] for ticket in now.waiting]
        if places != sorted(places):
            raise Violation(f"they wait in another order than they came: {about}")
        overtaken = False
        for ticket in before.waiting:
            if ticket in now.waiting:
                overtaken = True
            elif overtaken and ticket in now.holding:
                raise Violation(f"{ticket} overtook: {about}")

    def _grant(self, kind: str, queue_id: str, before: Truth, now: Truth, about: _Change) -> None:
        new = False
        for ticket, token in now.holding.items():
            if ticket in before.holding or token in self.grants.get(ticket, ()):
                continue  # held before, or registered again
            new = True
            if token <= self._tokens.get(queue_id, 0):
                raise Violation(f"token {token} does not grow: {about}")
            if kind == "enter" and ticket not in before.waiting and now.waiting:
                raise Violation(f"{ticket} was granted a slot past those who wait: {about}")
            self._tokens[queue_id] = token
            self.grants.setdefault(ticket, set()).add(token)
            self.history.append(f"+{ticket}")
        if new and len(now.holding) > now.limit:
            raise Violation(f"granted over the limit: {about}")


def _owner(ticket: str) -> str:
    return ticket.rpartition(":")[0]
