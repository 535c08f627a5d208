"""`RedisBackend`: the protocol over Redis, with the promises of a shared line.

What is said to Redis is said synchronously, before the first await, and in order (see `link`); what
comes back is taken in by callbacks of the reading loop (see `ledger`), whether or not the task that
asked still waits. So there is no await point at which a cancellation could lose anything.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import Context
from functools import partial
from types import TracebackType
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.sentinel import SentinelConnectionPool

from genesis.backends.identity import new_instance_id
from genesis.backends.protocol import (
    BackendEvent,
    CallRef,
    Disrupted,
    EnterRequest,
    EnterResult,
    Grant,
    LeaveResult,
    LimitDisagreement,
    Listener,
    QueueEntry,
    QueueStats,
    Recovered,
    State,
    Ticket,
)
from genesis.backends.redis.cluster import ClusterLink, Nodes
from genesis.backends.redis.endpoint import Endpoint, endpoint_of_pool, pool_of_url
from genesis.backends.redis.heartbeat import Heart
from genesis.backends.redis.keys import channel_prefix, check_key_prefix, queue_keys
from genesis.backends.redis.ledger import Ledger, Line, Passage, Stage, instance_of, parse_blob
from genesis.backends.redis.link import Link, Unreachable
from genesis.backends.redis.scripts import load
from genesis.backends.redis.sentinel import Master, MasterLink
from genesis.backends.redis.subscriber import Subscriber
from genesis.backends.waiting import fail, until_granted
from genesis.exceptions import BackendUnavailableError, EvictedError

__all__ = ["RedisBackend"]

_ENTRIES_PAGE = 1000
_DEFAULT_URL = "redis://localhost:6379"
_REMEMBERED = b"3600"  # seconds for which a set_limit is; a late copy would be in force for ever


class RedisBackend:
    """Keeps queues in Redis, shared by every instance with the same server and `key_prefix`.

    One connection for commands (in a Cluster one to each master in use), one for wake-ups, one
    heartbeat, however many calls wait. The connections are made with the first operation, in the event
    loop that runs then; from there on the object belongs to that loop. A process that forks makes one
    in each child.

    Args:
        url: as redis-py takes it (`redis://`, `rediss://` for TLS, `unix://`; user, password and
            database in it).
        key_prefix: put before every key and channel. Instances share queues if they share it.
        client: instead of a url, a ready `redis.asyncio.Redis`, also one that `Sentinel.master_for`
            made, or a ready `redis.asyncio.RedisCluster`. It tells where and how to connect; its own
            connections are neither used nor closed.
        lease: seconds after which a dead instance's waiters and holders are taken back. All
            instances should name the same. It is renewed every third of it.
        operation_timeout: seconds after which an operation without an answer raises
            `BackendUnavailableError`; a third of the lease by default.

    Raises:
        ValueError, TypeError: a malformed url, a client of another kind, both of them, a lease or
            timeout that is no positive number, or a key_prefix with braces.
    """

    name = "redis"

    def __init__(
        self,
        url: str = _DEFAULT_URL,
        key_prefix: str = "genesis:queue:",
        *,
        client: Redis | RedisCluster | None = None,
        lease: float = 15.0,
        operation_timeout: float | None = None,
    ) -> None:
        _check_seconds("lease", lease)
        timeout = lease / 3 if operation_timeout is None else operation_timeout
        _check_seconds("operation_timeout", timeout)
        check_key_prefix(key_prefix)
        if client is not None and url is not _DEFAULT_URL:
            raise ValueError("url and client were given; give the one or the other")
        self._place = _place_of(url, timeout) if client is None else _place_like(client, timeout)
        self.instance_id = new_instance_id()
        self._pid = os.getpid()
        self.heartbeat_interval = lease / 3
        self._lease = lease
        self._timeout = timeout
        self._key_prefix = key_prefix
        self._channels = channel_prefix(key_prefix)
        self._constants = (str(round(lease * 1e6)).encode(), self._channels)
        self._listener: Listener | None = None
        self._serials = itertools.count(1)
        self._session: _Session | None = None
        self._closed = False
        self._closing: asyncio.Task[None] | None = None
        self._down: dict[str, float] = {}  # which connection is down, and since when

    def listen(self, listener: Listener) -> None:
        self._listener = listener

    async def enter(self, entry: EnterRequest) -> EnterResult:
        session = self._join("enter", entry.queue_id, entry.item_id)
        line = session.ledger.open(entry.queue_id)
        ticket = Ticket(entry.queue_id, entry.item_id, f"{self.instance_id}:{next(self._serials)}")
        passage = Passage(ticket, line, entry.context, session.link.breaks)
        session.ledger.add(passage)
        if entry.limit is not None:
            line.limit = b"%d" % entry.limit
        arguments = (
            ticket.id.encode(),
            passage.blob,
            b"" if entry.limit is None else line.limit,
            b"free" if entry.only_if_free else b"",
            line.epoch,
            *self._constants,
        )
        command = session.link.call(
            load("enter"),
            line.keys,
            arguments,
            again=(b"1",),
            on_answer=partial(self._entered, session, passage, session.loop.time()),
        )
        try:
            reply = await command.reply
        except BaseException as error:
            session.ledger.remove(passage)
            if session.link.abandon(command):
                self._say_leave(session, line, ticket.id, passage.blob, passage.breaks)
            session.ledger.drop_if_idle(line)
            if isinstance(error, Unreachable):
                raise self._unavailable("enter", error, entry.queue_id, entry.item_id) from error
            raise
        state, _, position, depth, *_ = reply
        if state == b"refused":
            return EnterResult(ticket, None, 0, depth)
        if passage.stage is Stage.HOLDING and state == b"granted":
            return EnterResult(ticket, Grant(passage.number), 0, depth)
        return EnterResult(ticket, None, max(1, position), depth)

    def _entered(self, session: _Session, passage: Passage, sent: float, reply: Any) -> None:
        if isinstance(reply, Unreachable):
            return
        state, number, _, _, epoch, previous, look, granted, reclaimed = reply
        line, ledger = passage.line, session.ledger
        ledger.absorb(line.queue_id, granted, reclaimed)
        if previous:
            self._emit(LimitDisagreement(line.queue_id, int(previous), int(line.limit or 1)))
        if ledger.find(passage.ticket.id) is None:
            return  # its task has left already
        if state == b"refused":
            ledger.remove(passage)
            if passage.breaks != session.link.breaks:  # a stray copy of it may not be refused
                self._say_leave(session, line, passage.ticket.id, passage.blob, passage.breaks)
            ledger.drop_if_idle(line)
            return
        ledger.renewed(line, sent)
        if line.epoch not in (b"", epoch):
            session.heart.schedule(line, 0.0)  # data was lost; the beat will see the old epoch
        elif state != b"gone":
            line.epoch = epoch
        ledger.admitted(passage, state, int(number))
        if passage.stage is Stage.WAITING and sent <= session.listening_since < math.inf:
            look = 0  # it may have been granted since, before this instance listened
        session.heart.schedule(line, look / 1e6 if look >= 0 else self._lease / 3)

    async def wait(self, ticket: Ticket, timeout: float | None) -> Grant:
        session = self._session
        passage = session.ledger.find(ticket.id) if session is not None else None
        if passage is None or passage.future is None:
            if self._closed:
                raise self._unavailable("wait", BackendUnavailableError.CLOSED, *ticket[:2])
            raise EvictedError(ticket.queue_id, ticket.item_id)
        return await until_granted(passage.future, timeout)

    async def leave(self, ticket: Ticket, context: str = "") -> LeaveResult:
        session = self._session
        passage = session.ledger.find(ticket.id) if session is not None else None
        if session is None or passage is None:
            return LeaveResult(None)
        session.ledger.remove(passage)
        blob = f"{context} {ticket.item_id}".encode()
        released_by = CallRef(ticket.item_id, self.instance_id, context)
        command = self._say_leave(session, passage.line, ticket.id, blob, passage.breaks, released_by)
        if session.link.trouble(passage.line.keys):
            return LeaveResult(None)  # it will be said; there is nothing to wait for
        try:
            was, granted, _ = await command.reply
        except Unreachable:
            return LeaveResult(None)
        state: State | None = None
        if was:
            state = "holding" if was == b"holding" else "waiting"
        return LeaveResult(state, tuple(_party(row) for row in granted))

    def _say_leave(
        self,
        session: _Session,
        line: Line,
        ticket_id: str,
        blob: bytes,
        breaks: int,
        released_by: CallRef | None = None,
        *,
        remembered: bytes = b"0",
    ) -> Any:
        """Give a ticket back that was made when the link had broken `breaks` times."""
        line.unanswered += 1
        return session.link.call(
            load("leave"),
            line.keys,
            (ticket_id.encode(), blob, *self._constants),
            again=(remembered,),
            since=breaks,
            on_answer=partial(self._left, session, line, released_by),
            lasting=True,
        )

    def _left(self, session: _Session, line: Line, released_by: CallRef | None, reply: Any) -> None:
        line.unanswered -= 1
        if isinstance(reply, Unreachable):
            # Refused, not lost: Redis is out of memory, or does not allow it. The beat tries again.
            line.suspect = True
            session.heart.schedule(line, self._lease / 3)
            return
        _, granted, reclaimed = reply
        session.ledger.absorb(line.queue_id, granted, reclaimed, released_by)
        session.ledger.drop_if_idle(line)

    def lapsed(self, ticket: Ticket) -> bool:
        session = self._session
        passage = session.ledger.find(ticket.id) if session is not None else None
        if session is None or passage is None:
            return True  # closed, or the loop in which it was granted was
        if session.loop.time() >= passage.line.fence:
            session.ledger.lapse(passage.line)
        return passage.lost

    async def set_limit(self, queue_id: str, limit: int | None) -> None:
        value = b"" if limit is None else b"%d" % limit
        call = f"{self.instance_id}:{next(self._serials)}"
        session = self._join("set_limit", queue_id)

        def given_up() -> None:
            # A stray copy of it must not undo what is set after it has failed.
            line = session.ledger.open(queue_id)
            self._say_leave(session, line, call, b" ", -1, remembered=_REMEMBERED)

        arguments = (value, *self._constants, call.encode(), _REMEMBERED)
        granted, reclaimed = await self._ask("set_limit", "limit", queue_id, arguments, given_up)
        session.ledger.absorb(queue_id, granted, reclaimed)

    async def stats(self, queue_id: str) -> QueueStats:
        self._say_reap("stats", queue_id)
        waiting, in_use, limit, oldest = await self._ask("stats", "stats", queue_id)
        return QueueStats(waiting, in_use, int(limit), oldest / 1e6)

    async def position(self, queue_id: str, item_id: str) -> int | None:
        place = 0
        async for _, _, _, found in self._pages("position", queue_id, b"waiting"):
            place += 1
            if found == item_id:
                return place
        return None

    async def entries(self, queue_id: str) -> list[QueueEntry]:
        found = []
        async for ticket_id, number, age, item_id in self._pages("entries", queue_id, b"holding"):
            owner = instance_of(ticket_id)
            found.append(QueueEntry(item_id, owner, "holding", age, None, number))
        place = 0
        async for ticket_id, _, age, item_id in self._pages("entries", queue_id, b"waiting"):
            place += 1
            owner = instance_of(ticket_id)
            found.append(QueueEntry(item_id, owner, "waiting", age, place, None))
        return found

    async def evict(self, queue_id: str, item_id: str) -> int:
        evicted = 0
        # Waiters first: a slot that an evicted holder frees must not go to one of them.
        for state in (b"waiting", b"holding"):
            tickets = [
                ticket_id
                async for ticket_id, _, _, found in self._pages("evict", queue_id, state)
                if found == item_id
            ]
            for ticket_id in tickets:
                arguments = (ticket_id.encode(), *self._constants)
                was, granted, reclaimed = await self._ask("evict", "evict", queue_id, arguments)
                evicted += bool(was)
                self._join("evict", queue_id).ledger.absorb(queue_id, granted, reclaimed)
        return evicted

    async def ping(self) -> None:
        await self._ask("ping", "stats", "ping")

    async def close(self) -> None:
        # What takes time, in a task of its own, which every call of close awaits: a close that is
        # cancelled half way must not leave connections and tasks behind that nobody can end any more.
        if self._closing is None:
            self._closed = True
            session, self._session = self._session, None
            if session is None:
                return
            session.heart.stop()
            for line in list(session.ledger.lines.values()):
                for passage in list(line.passages.values()):
                    self._close_passage(session, passage)
            self._closing = asyncio.create_task(self._shut_down(session))
        await asyncio.shield(self._closing)

    async def _shut_down(self, session: _Session) -> None:
        # Also if the link is down: it is tried anew, and what is owed would else wait for the lease.
        await session.link.drain(self._timeout)
        await session.subscriber.close()
        await session.link.close()

    async def __aenter__(self) -> RedisBackend:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _close_passage(self, session: _Session, passage: Passage) -> None:
        ticket = passage.ticket
        if passage.stage is Stage.HOLDING:
            session.ledger.lose(passage, "closed")
        elif passage.future is not None:
            closed = self._unavailable("wait", BackendUnavailableError.CLOSED, *ticket[:2])
            fail(passage.future, closed)
        session.ledger.remove(passage)
        self._say_leave(session, passage.line, ticket.id, passage.blob, passage.breaks)

    def _join(self, operation: str, queue_id: str = "", item_id: str = "") -> _Session:
        """The running session, or a new one in the running loop."""
        if self._closed:
            raise self._unavailable(operation, BackendUnavailableError.CLOSED, queue_id, item_id)
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.loop.is_closed():
            if os.getpid() != self._pid:
                # Its tickets would be taken for those of the other process, and share their slots.
                raise RuntimeError(
                    "this RedisBackend was made before the process forked; make one in each process"
                )
            # In no context: its tasks would keep that of the call which came first, and whatever its
            # application has there.
            self._session = Context().run(_Session, self, loop)
        elif self._session.loop is not loop:
            raise RuntimeError(
                "this RedisBackend is in use in another event loop; make one for each loop"
            )
        return self._session

    async def _ask(
        self,
        operation: str,
        script: str,
        queue_id: str,
        arguments: Sequence[bytes] = (),
        given_up: Callable[[], None] | None = None,
    ) -> Any:
        """Say it, and wait for the reply; `given_up` is called if that ends while it may still come."""
        session = self._join(operation, queue_id)
        keys = queue_keys(self._key_prefix, queue_id)
        command = session.link.call(load(script), keys, arguments)
        try:
            return await command.reply
        except BaseException as error:
            if given_up is not None and session.link.abandon(command):
                given_up()
            if isinstance(error, Unreachable):
                raise self._unavailable(operation, error, queue_id) from error
            raise

    async def _pages(
        self, operation: str, queue_id: str, state: bytes
    ) -> AsyncIterator[tuple[str, int, float, str]]:
        """All of one state in order: ticket, number, seconds since, item_id."""
        self._say_reap(operation, queue_id)
        after = b"0"
        while True:
            arguments = (state, after, b"%d" % _ENTRIES_PAGE)
            rows = await self._ask(operation, "entries", queue_id, arguments)
            for raw, number, since, blob in rows:
                _, item_id = parse_blob(blob)
                yield raw.decode(), int(number), since / 1e6, item_id
            if len(rows) < _ENTRIES_PAGE:
                return
            after = rows[-1][1]

    def _say_reap(self, operation: str, queue_id: str) -> None:
        """Before a look at the queue: it travels with it, and comes first."""
        session = self._join(operation, queue_id)

        def absorb(reply: Any) -> None:
            if not isinstance(reply, Unreachable):
                session.ledger.absorb(queue_id, *reply)

        keys = queue_keys(self._key_prefix, queue_id)
        session.link.call(load("reap"), keys, self._constants, on_answer=absorb)

    def _on_message(self, session: _Session, message: bytes) -> None:
        kind, _, rest = message.partition(b" ")
        if kind == b"granted":
            ticket_id, token, origin = rest.split(b" ", 2)
            passage = session.ledger.find(ticket_id.decode())
            if passage is not None:
                session.ledger.heard(passage, int(token), _leaver(origin))
        elif kind == b"evicted":
            passage = session.ledger.find(rest.decode())
            if passage is not None:
                session.ledger.ended(passage, "evicted")

    def _open_link(self, session: _Session) -> Link | ClusterLink:
        up, down = partial(self._on_up, session), partial(self._on_down, session)
        if isinstance(self._place, Nodes):
            return ClusterLink(self._place, self._timeout, up, down, lambda: session.heart.beat_all())
        stands = partial(self._on_link_up, session)
        broken = partial(down, "link")
        if isinstance(self._place, Master):
            return MasterLink(self._place, self._timeout, self.heartbeat_interval, stands, broken)
        return Link(self._place, self._timeout, stands, broken)

    def _on_link_up(self, session: _Session) -> None:
        self._on_up(session, "link")
        session.look_around()

    def _on_subscribed(self, session: _Session) -> None:
        self._on_up(session, "subscriber")
        session.listening_since = session.loop.time()
        session.heart.beat_all_waiting()

    def _on_up(self, session: _Session, part: str) -> None:
        since = self._down.pop(part, None)
        if since is not None and not self._down:
            self._emit(Recovered(session.loop.time() - since))

    def _on_down(self, session: _Session, part: str, reason: str, detail: str) -> None:
        if part not in self._down:  # one event an outage, however often it is tried meanwhile
            self._down[part] = session.loop.time()
            self._emit(Disrupted(reason, detail))

    def _emit(self, event: BackendEvent) -> None:
        if self._listener is not None:
            self._listener(event)

    def _unavailable(
        self, operation: str, cause: object, queue_id: str = "", item_id: str = ""
    ) -> BackendUnavailableError:
        return BackendUnavailableError(self.name, operation, str(cause), queue_id, item_id)


class _Session:
    """What runs while the backend is in use: two connections, one timer."""

    __slots__ = ("heart", "ledger", "link", "listening_since", "loop", "subscriber")

    def __init__(self, backend: RedisBackend, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.listening_since = math.inf  # the loop's clock; not yet
        self.ledger = Ledger(
            backend._key_prefix,
            backend._lease,
            loop.time,
            lambda line: self.heart.schedule(line, 0.0),
            backend._emit,
        )
        self.link = backend._open_link(self)
        self.heart = Heart(
            self.link,
            self.ledger,
            backend.instance_id,
            backend._lease,
            backend._constants,
            # a stranger: how it came here is not known
            lambda line, ticket_id: backend._say_leave(self, line, ticket_id, b" ", -1),
            backend._emit,
        )
        self.subscriber = Subscriber(
            self.link.subscribe_at,
            backend._channels + backend.instance_id.encode(),
            backend._timeout,
            backend.heartbeat_interval,
            partial(backend._on_message, self),
            partial(backend._on_subscribed, self),
            partial(backend._on_down, self, "subscriber"),
        )

    def look_around(self) -> None:
        """A server is reached (again), which may be another one, or may have lost its data."""
        self.heart.beat_all()
        self.subscriber.move_if_left()


def _place_of(url: object, timeout: float) -> Endpoint:
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, got {type(url).__name__}")  # not shown: see pool_of_url
    return _checked(endpoint_of_pool(pool_of_url(url), timeout))


def _place_like(client: object, timeout: float) -> Endpoint | Nodes:
    """Where a client connects to."""
    if isinstance(client, RedisCluster):
        return Nodes(client, timeout)
    if not isinstance(client, Redis):
        raise TypeError(
            "client must be a redis.asyncio.Redis (also one that Sentinel.master_for made) or a "
            f"redis.asyncio.RedisCluster, got {type(client).__module__}.{type(client).__qualname__}"
        )
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        return _checked(Master(pool, timeout))
    return _checked(endpoint_of_pool(pool, timeout))


def _checked(place: Endpoint) -> Endpoint:
    place.check()
    return place


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be seconds, got {type(value).__name__}: {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be more than 0 seconds, and finite, got {value!r}")


def _leaver(origin: bytes) -> CallRef | None:
    """Whose departure made room, as a wake-up message tells it; nobody's if a slot was free."""
    if not origin:
        return None
    ticket_id, _, blob = origin.partition(b" ")
    context, item_id = parse_blob(blob)
    return CallRef(item_id, instance_of(ticket_id.decode()), context)


def _party(row: tuple[bytes, bytes, bytes]) -> CallRef:
    ticket_id, _, blob = row
    context, item_id = parse_blob(blob)
    return CallRef(item_id, instance_of(ticket_id.decode()), context)
