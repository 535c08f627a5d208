"""Runs the shipped scripts in a real Redis: writes a state, runs one script, reads the state.

Results for equal (state, command) pairs are cached. Delivery and time are replaced: `PUBLISH` by a
list, so that the explorer learns what was published; the portion of 500 by a few; deadlines by one of a
few classes (see `Data`), written as a time that is far enough from now.
"""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import hiredis

from genesis.backends.redis.keys import queue_keys
from genesis.backends.redis.scripts import source_of
from tests.protocol.numbers import ANCIENT, FRESH, OLD, renewal

__all__ = [
    "ALIVE",
    "CLOSED",
    "EXPIRED",
    "KEPT_FOR",
    "LAPSED",
    "LEASE",
    "OPEN",
    "REAPED",
    "Data",
    "Outcome",
    "Server",
]

LEASE = 100  # seconds
KEPT_FOR = 9  # us for which a place is kept; the class of the deadline is taken before they have passed
NONE, ALIVE, LAPSED, REAPED, EXPIRED = range(5)  # classes of a lease; the last two: its record
OPEN, CLOSED = 1, 2  # classes of the recovery window: closed for less than half a lease
KEYS = queue_keys("explored:", "q")
PUBLISH = "redis.pcall('PUBLISH', channel .. owner, text)"
LISTED = "redis.pcall('RPUSH', 'published', owner .. ' ' .. text)"
PUBLISH_HEAD = "redis.pcall('PUBLISH', ARGV[4] .. owner, text)"  # of leave.lua's short way
PORTION = "local PORTION = 500 "


class Data(NamedTuple):
    """The data in Redis except `last`, `holds` and `mean`, which affect no promise."""

    records: tuple[
        tuple[int, bool, int, int], ...
    ]  # session, reaped, session reaped last, class of the lease
    waiting: tuple[tuple[int, bytes], ...] = ()
    holding: tuple[tuple[int, bytes], ...] = ()
    tickets: tuple[bytes, ...] = ()
    limit: bytes | None = None
    override: bytes | None = None
    version: int = 0
    key: tuple[int, bytes] | None = None  # the override's own key
    until: int = 0
    past: tuple[
        tuple[bytes, int, bool], ...
    ] = ()  # `k a:0`, place | `t a:0`, 0 ...; whether it is valid


class Outcome(NamedTuple):
    data: Data
    reply: Any
    published: tuple[tuple[int, tuple[Any, ...]], ...]  # instance, message


class Server:
    """One connection to a private Redis."""

    def __init__(
        self,
        port: int,
        portion: int = 500,
        changed: Callable[[str, str], str] = lambda name, text: text,
    ) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = hiredis.Reader()
        self.known: dict[Any, Outcome] = {}
        self.runs = 0
        self.shas: dict[str, bytes] = {}
        for name in ("beat", "enter", "evict", "leave", "limit", "stats", "sync"):
            text = changed(name, source_of(name))
            if "PORTION" in text:
                assert PUBLISH in text, name
                assert PORTION in text, name
            text = text.replace(PUBLISH, LISTED).replace(PUBLISH_HEAD, LISTED)
            assert "'PUBLISH'" not in text
            text = text.replace(PORTION, f"local PORTION = {portion} ")
            self.call([(b"SCRIPT", b"LOAD", text.encode())])
            self.shas[name] = hashlib.sha1(text.encode()).hexdigest().encode()

    def close(self) -> None:
        self.socket.close()

    def call(self, commands: Sequence[Sequence[bytes]]) -> list[Any]:
        parts = []
        for command in commands:
            parts.append(b"*%d\r\n" % len(command))
            parts += [b"$%d\r\n%s\r\n" % (len(word), word) for word in command]
        self.socket.sendall(b"".join(parts))
        replies: list[Any] = []
        while len(replies) < len(commands):
            reply = self.reader.gets()
            if reply is False:
                self.reader.feed(self.socket.recv(65536))
            else:
                replies.append(reply)
        return replies

    def run(
        self, data: Data, instance: int, name: str, session: int, arguments: tuple[Any, ...]
    ) -> Outcome:
        """Run one script of `instance` (-1: an instance without tickets)."""
        key = (data, instance, name, session, arguments)
        outcome = self.known.get(key)
        if outcome is None:
            outcome = self.known[key] = self._run(data, instance, name, session, arguments)
        return outcome

    def _run(
        self, data: Data, instance: int, name: str, session: int, arguments: tuple[Any, ...]
    ) -> Outcome:
        self.runs += 1
        now = time.time_ns() // 1000
        ages = {
            0: 0,
            FRESH: now - 1_000_000,
            OLD: now - 3 * LEASE * 1_000_000,
            ANCIENT: now - 1_000_000_000,
        }
        words = [word_of(argument) for argument in arguments]
        if name == "sync":
            words[1] = b"%d" % ages[arguments[1] % 10]
        first = (
            chr(97 + instance).encode() if instance >= 0 else b"z",
            b"%d" % session if session else b"",
        )
        script = (
            b"EVALSHA",
            self.shas[name],
            b"7",
            *KEYS,
            *first,
            b"%d" % (LEASE * 1_000_000),
            b"wake:",
            *words,
        )
        meta, waiting, holding, tickets, leases, past, override = KEYS
        before = written(data, now)
        *_, reply, m, w, h, t, le, p, o, published = self.call(
            [
                *before,
                script,
                (b"HGETALL", meta),
                (b"ZRANGE", waiting, b"0", b"-1", b"WITHSCORES"),
                (b"ZRANGE", holding, b"0", b"-1", b"WITHSCORES"),
                (b"ZRANGE", tickets, b"0", b"-1"),
                (b"ZRANGE", leases, b"0", b"-1", b"WITHSCORES"),
                (b"ZRANGE", past, b"0", b"-1", b"WITHSCORES"),
                (b"GET", override),
                (b"LRANGE", b"published", b"0", b"-1"),
            ]
        )
        if isinstance(reply, Exception):
            raise AssertionError(f"{name} {arguments} on {data}: {reply}")
        after = read(len(data.records), now, m, w, h, t, le, p, o)
        pushes = []
        for line in published:
            owner, kind, number, ticket, *rest = line.split(b" ")
            token = int(rest[0]) if kind == b"g" else 0
            pushes.append((owner[0] - 97, ("push", kind, int(number), ticket, token)))
        return Outcome(after, plain(name, reply, instance, after), tuple(pushes))


def word_of(argument: Any) -> bytes:
    if type(argument) is int:
        return b"%d" % argument
    if type(argument) is tuple:
        return b"%s %d" % argument
    word: bytes = argument
    return word


def written(data: Data, now: int) -> list[tuple[bytes, ...]]:
    """The commands that put Redis into this state."""
    meta, waiting, holding, tickets, leases, past, override = KEYS
    commands: list[tuple[bytes, ...]] = [(b"DEL", *KEYS, b"published")]
    fields: list[bytes] = []
    deadlines: list[bytes] = []
    lease = LEASE * 1_000_000
    times = {
        ALIVE: now + lease // 2,
        LAPSED: now - lease,
        REAPED: -(now + 5 * lease),
        EXPIRED: -(now - 5 * lease),
    }
    for i, (session, reaped, last_reaped, deadline) in enumerate(data.records):
        name = b"%c" % (97 + i)
        if session:
            fields += (name, b"%d" % (-session if reaped else session))
        if last_reaped:
            fields += (name + b":r", b"%d" % last_reaped)
        if deadline:
            deadlines += (b"%d" % times[deadline], name)
    if data.limit is not None:
        fields += (b"limit", data.limit)
    if data.override is not None:
        fields += (b"override", data.override)
    if data.version:
        fields += (b"version", b"%d" % data.version)
    if data.until:
        fields += (b"until", b"%d" % (now + lease // 3 if data.until == OPEN else now - 1_000_000))
    if fields:
        commands.append((b"HSET", meta, *fields))
    if deadlines:
        commands.append((b"ZADD", leases, *deadlines))
    for key, rows in ((waiting, data.waiting), (holding, data.holding)):
        if rows:
            commands.append(
                (b"ZADD", key, *[word for n, member in rows for word in (b"%d" % n, member)])
            )
    if data.tickets:
        commands.append(
            (b"ZADD", tickets, *[word for member in data.tickets for word in (b"0", member)])
        )
    for name, place, valid in data.past:
        entry = b"%s %d" % (name, place) if place else name
        score = now + 10 * lease if valid else now - lease
        if name.startswith(b"e "):
            score = 1_000_000 - now
        commands.append((b"ZADD", past, b"%d" % score, entry))
    if data.key is not None:
        commands.append((b"SET", override, b"%d %s" % data.key))
    return commands


def read(count: int, now: int, m: Any, w: Any, h: Any, t: Any, le: Any, p: Any, o: Any) -> Data:
    meta = dict(zip(m[::2], m[1::2], strict=True))
    scores = {name: float(score) for name, score in zip(le[::2], le[1::2], strict=True)}
    records = []
    for i in range(count):
        name = b"%c" % (97 + i)
        session, score = int(meta.get(name, 0)), scores.get(name, 0)
        lease = (
            NONE
            if not score
            else (ALIVE if score > now else LAPSED)
            if score > 0
            else REAPED
            if -score > now
            else EXPIRED
        )
        records.append((abs(session), session < 0, int(meta.get(name + b":r", 0)), lease))
    past = []
    for entry, score in zip(p[::2], p[1::2], strict=True):
        kind, ticket, *place = entry.split(b" ")
        valid = float(score) > now or kind == b"e"
        past.append((kind + b" " + ticket, int(place[0]) if place else 0, valid))
    until = float(meta.get(b"until", 0))
    limit = meta.get(b"limit")
    return Data(
        tuple(records),
        tuple((int(float(n)), member) for member, n in zip(w[::2], w[1::2], strict=True)),
        tuple((int(float(n)), member) for member, n in zip(h[::2], h[1::2], strict=True)),
        tuple(t),
        limit or None,
        meta.get(b"override"),
        int(meta.get(b"version", 0)),
        None if o is None else (int(o.split(b" ")[0]), o.split(b" ")[1]),
        NONE
        if not until
        else OPEN
        if until > now
        else CLOSED
        if until + LEASE * 500_000 > now
        else NONE,
        tuple(sorted(past)),
    )


def sign(number: int) -> int:
    return (number > 0) - (number < 0)


def pairs(rows: Any) -> tuple[Any, ...]:
    return tuple((member, int(token)) for member, token in rows)


def plain(name: str, reply: Any, instance: int, after: Data) -> tuple[Any, ...]:
    """A reply without the parts that only the clock or an observer affects."""
    if reply[0] == 0 and name != "evict":
        return (0,)
    if name == "limit":
        return (int(reply[0]), pairs(reply[1]), sign(reply[3])) if len(reply) > 1 else (0,)
    fresh = renewal(instance, FRESH) if instance >= 0 else 0
    if name == "enter":
        row, _, _, _, *effects = reply
        granted, look = (pairs(effects[0]), sign(effects[2])) if effects else ((), -1)
        return (tuple(row[: 2 if row[0] == 3 else 3]), granted, look)
    if name == "leave":
        return (reply[0], pairs(reply[1]), sign(reply[3])) if len(reply) > 1 else (reply[0],)
    if name == "beat":
        _, _, override, version, _, count, held, total, granted, _, look = reply
        tokens = None
        if held >= 0:
            prefix = b"%c:" % (97 + instance)
            tokens = tuple(token for token, member in after.holding if member.startswith(prefix))
            assert (held, int(total)) == (len(tokens), sum(token % 2**32 for token in tokens)), reply
        return (1, fresh, sign(look), count, tokens, override, int(version), pairs(granted))
    if name == "sync":
        if reply[0] == -1:
            return (-1, reply[1])
        _, _, override, version, _, rows, lost, _, _, more, granted, _, look = reply
        short = tuple(tuple(row[: 2 if row[0] == 3 else 3]) for row in rows)
        return (1, fresh, sign(look), short, override, int(version), more, lost, pairs(granted))
    return (reply[0] if name == "evict" else 1, pairs(reply[1]), sign(reply[3]))
