"""`Link`: keeps one `Connection` to a server alive, and reconnects when it ends.

A connection is up when the wake-up channel is subscribed and the scripts are loaded: every command sent
on it can run, and its wake-ups arrive. Pending commands fail when a connection ends. This module never
retries them; the core sends a `sync` instead. If several servers will do, each attempt is on another.

| event                                          | action                                             |
|------------------------------------------------|----------------------------------------------------|
| connected                                      | `on_up`                                            |
| cannot connect to the last endpoint left       | `on_down`, `_retry`                                |
| cannot connect to another                      | try the next at once                               |
| the connection ends                            | `on_down`, `_retry`: at once after 1 s up or more  |
| the server closes it while no reply is due     | the same, with the reason `idle_closed`            |
| idle for `probe_interval`                      | PING                                               |
| a reply is overdue by `_SECOND_AFTER`          | open a second connection; the first to reply stays |
| a reply is overdue by `timeout`                | abort the connection                               |
| `reconnect`                                    | abort the connection                               |
| the application cancels the connecting task    | retry: only `close` ends the link                  |

The second connection is for a network that has silently dropped the first. If the server is only slow,
it replies on the first as soon as on the second, and the second is closed. Two connections never carry
commands at the same time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextvars import Context
from functools import partial
from typing import Any, NamedTuple

from redis import exceptions as redis_errors

from genesis.backends.redis.connection import Connection, OnReply
from genesis.backends.redis.endpoint import Endpoint
from genesis.backends.redis.errors import ConnectionLost, is_permanent, reason_of

_SECOND_AFTER = 0.5  # seconds without a due reply after which a second connection is opened
_STEADY = 1.0  # seconds up after which the count of failures restarts
_LATE = 0.1  # seconds; a timer that fires later than this shows that the process was stopped
_RETRY_CANCELLED = 0.05  # seconds until a cancelled attempt is retried, unless the loop ends first


def ignore(*_: object) -> None:
    """A callback that does nothing."""


class LinkSettings(NamedTuple):
    """What the links of one backend have in common."""

    greeting: Sequence[Sequence[bytes]]
    """Commands sent on each connection before it is up. An error reply is a failure to connect."""
    timeout: float
    """Seconds within which a connection must be up, and within which a reply must come."""
    probe_interval: float
    """Seconds without traffic after which a PING is sent."""
    on_up: Callable[[Link], None]
    """Called each time a connection is up."""
    on_down: Callable[[Link | None, str, str], None]
    """Called with a reason (of `reason_of`, or `idle_closed`) and a detail when a connection ended or
    could not be opened, after its pending commands have failed and before the next `on_up`. The reason
    `idle_closed` is no alarm: an idle connection was closed by the server or dropped by the network.
    Another call follows if the link cannot reconnect at once. None for the link: see cluster.py."""
    on_push: Callable[[Link, list[Any]], None]
    """Called with each wake-up."""
    on_moved: Callable[[], None] = ignore
    """See `Router`."""
    on_silent: Callable[[Link], None] = ignore
    """Called repeatedly while a reply is overdue and the connection is up."""
    was_up: bool = False
    """Whether a server was reached before, by another link: see `is_permanent`."""


class Link:
    """See the module docstring. Belongs to the event loop that runs when it is created.

    Args:
        endpoints: one or more. They are tried in turn, one for each connection.

    Attributes:
        endpoint: that of the last attempt.
        untried: those left of this round.
        why_down: why no connection is up; "" if one is up.
        denied: the last attempt at each endpoint failed for a reason that a retry does not fix:
            credentials, permissions, an unknown host, TLS, or a server without RESP3.
        answer: the reply to the last command of the greeting.
    """

    def __init__(self, endpoints: Sequence[Endpoint], settings: LinkSettings) -> None:
        self.endpoint = endpoints[0]
        self.untried: Sequence[Endpoint] = ()
        self.why_down = "not connected yet"
        self.denied = False
        self.answer: Any = None
        self._endpoints = endpoints
        self._settings = settings
        self._second_after = min(_SECOND_AFTER, settings.timeout / 2)
        # A little later: a call that fails at the same time can still send its `leave`.
        self._abort_after = settings.timeout + min(0.02, settings.timeout / 10)
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None  # up, or ending
        self._opening: asyncio.Task[Connection] | None = None
        self._timer: asyncio.TimerHandle | None = None  # while up `_watch`, else the next attempt
        self._awake_since = 0.0  # by loop.time(): the process was stopped until then
        self._up_since = 0.0  # by loop.time(); 0: never
        self._failures = 1
        self._denials = 0  # the last attempts, each at the next endpoint, that a retry does not fix
        self._closing = False
        self._open()

    @property
    def up(self) -> bool:
        return self._connection is not None and self._connection.up

    @property
    def responsive(self) -> bool:
        """Whether the link is up, and no reply is overdue."""
        connection = self._connection
        if connection is None or not connection.up:
            return False
        return (connection.silence() or 0.0) < self._second_after

    @property
    def ended(self) -> bool:
        """Whether `close` has completed: no connection and no task is left."""
        return self._closing and self._connection is None and self._opening is None

    def send(self, parts: Sequence[bytes], on_reply: OnReply) -> bool:
        """Send a command, see `Connection.send`. If the link is down, only return False."""
        connection = self._connection
        if connection is None or not connection.up:
            return False
        connection.send(parts, on_reply)
        return True

    def redact(self, error: BaseException) -> str:
        """Format an error of this link's without credentials."""
        text = self.endpoint.redact(error)
        for endpoint in self._endpoints:  # the error might be of an earlier connection
            text = endpoint.hide(text)
        return text

    def reconnect(self, reason: str, detail: str) -> None:
        """Abort the connection that is up, if any, and reconnect."""
        if self._connection is not None and self._connection.up:
            self._connection.abort(reason, detail)

    def close(self) -> None:
        """Close the link as `Connection.close` does. `on_down` is not called.

        If no reply comes, the connection is aborted by `wait_closed`, or after the timeout.
        """
        self._closing = True
        self.why_down = "the backend was closed"
        if self._opening is not None:
            self._opening.cancel()
        if self._connection is not None:
            self._connection.close()
        elif self._timer is not None:
            self._timer.cancel()

    async def wait_closed(self, timeout: float = 1.0) -> None:
        """After `close`: wait until the connection has ended; after `timeout` seconds, abort it."""
        opening, connection = self._opening, self._connection
        if opening is not None:
            await asyncio.wait({opening}, timeout=timeout)
        if connection is not None:
            await asyncio.wait({connection.closed}, timeout=timeout)
            connection.abort("closed", f"the connection was closed, and {timeout:g} s have passed")
            await asyncio.wait({connection.closed}, timeout=timeout)

    # Connecting

    def _open(self) -> None:
        # An empty context: the task, the transport and all callbacks would keep that of a caller.
        self._opening = Context().run(
            self._loop.create_task, self._connect(), name="genesis-redis-connect"
        )
        self._opening.add_done_callback(self._opened, context=Context())

    async def _connect(self) -> Connection:
        timeout = self._settings.timeout
        try:
            return await asyncio.wait_for(self._handshake(), timeout)
        except asyncio.TimeoutError:
            text = f"no connection to {self.endpoint.name} within {timeout:g} s"
            raise redis_errors.TimeoutError(text) from None

    async def _handshake(self) -> Connection:
        self.endpoint, *self.untried = self.untried or self._endpoints
        opened = self.endpoint.connection()
        busy = partial(self._watch_in, self._second_after)
        connection = Connection(lambda push: self._pushed(connection, push), busy)
        try:
            await opened.connect()  # type: ignore[no-untyped-call]
            await connection.take_over(opened)
        except (Exception, asyncio.CancelledError):  # no GeneratorExit: the loop might be closed then
            await opened.disconnect(nowait=True)
            raise
        try:
            # A custom redis_connect_func might not have sent HELLO.
            greeting = [(b"HELLO", b"3"), *self._settings.greeting]
            replies = await asyncio.gather(*map(connection.request, greeting))
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
            if type(replies[0]) is not dict:
                text = f"HELLO 3 did not lead to RESP3: {replies[0]!r:.200}"
                raise redis_errors.ResponseError(text)
        except (Exception, asyncio.CancelledError):
            connection.abort("closed", "it was not up in time")
            raise
        self.answer = replies[-1]
        return connection

    def _opened(self, task: asyncio.Task[Connection]) -> None:
        self._opening = None
        if task.cancelled():
            if not self._closing and self._connection is None:
                self._set_timer(_RETRY_CANCELLED, self._open)
        elif (error := task.exception()) is not None:
            self._failed(error)
        elif not (connection := task.result()).up:
            self._failed(redis_errors.ConnectionError("the server closed the connection"))
        elif self._closing or self.responsive:
            connection.close()
        elif (silent := self._connection) is not None:
            self._opening = task  # used when every command pending on the silent one has failed
            silent.closed.add_done_callback(lambda _: self._opened(task), context=Context())
            detail = f"no reply for {self._second_after:g} s, but a new connection answers"
            silent.abort("idle_closed" if silent.idle else "timeout", detail)
        else:
            self._connection = connection
            connection.closed.add_done_callback(self._ended, context=Context())
            self._up_since = self._loop.time()
            self.why_down, self.denied, self._denials = "", False, 0
            self._watch_in(self._second_after)
            self._settings.on_up(self)

    def _failed(self, error: BaseException) -> None:
        if self._closing or self._connection is not None:
            return  # if that one is silent, `_watch` opens another
        permanent = is_permanent(error, was_up=self._settings.was_up or self._up_since > 0)
        self._denials = self._denials + 1 if permanent else 0
        if self.untried:
            self._open()
            return
        self._retry()
        self.denied = self._denials >= len(self._endpoints)
        self.why_down = self.redact(error)
        self._settings.on_down(self, reason_of(error), self.why_down)

    def _ended(self, closed: asyncio.Future[ConnectionLost]) -> None:
        why, opening = closed.result(), self._opening
        self._connection = None
        if self._timer is not None:
            self._timer.cancel()
        if self._closing:
            return
        if self._loop.time() - self._up_since >= _STEADY:
            self._failures = 0
        if opening is None:
            self._retry()
        replaced = opening is not None and opening.done()
        self.why_down = str(why)
        self._settings.on_down(self, "idle_closed" if replaced else why.reason, self.why_down)

    def _retry(self) -> None:
        """Connect again: at once, or after 20 ms, growing to 1 s, of which up to half is jitter."""
        most = min(1.0, 0.01 * 2.0 ** min(self._failures, 10)) if self._failures else 0.0
        self._set_timer(random.uniform(most / 2, most), self._open)
        self._failures += 1

    def _pushed(self, connection: Connection, push: list[Any]) -> None:
        # Only in one order with the replies: a second connection subscribes before it is used.
        if connection is self._connection:
            self._settings.on_push(self, push)

    # Supervision

    def _set_timer(self, seconds: float, action: Callable[..., None], *arguments: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, action, *arguments, context=Context())

    def _watch_in(self, seconds: float) -> None:
        self._set_timer(seconds, self._watch, self._connection, self._loop.time() + seconds)

    def _watch(self, connection: Connection, due: float) -> None:
        silence, now = connection.silence(), self._loop.time()
        if silence is None:
            if (idle := now - connection.last_received) < self._settings.probe_interval:
                connection.watched = False
                self._watch_in(self._settings.probe_interval - idle)
                return
            connection.request((b"PING",))
            silence = 0.0
        if now - due > _LATE:
            # The process was stopped: a reply might be in the socket, so that time does not count.
            self._awake_since = now
        silence = min(silence, now - self._awake_since)
        if silence >= self._abort_after:
            connection.abort("timeout", f"no reply within {self._settings.timeout:g} s")
            return
        if silence < self._second_after:
            self._watch_in(self._second_after - silence)
            return
        self._watch_in(min(self._second_after, self._abort_after - silence))
        if not self._closing:
            if self._opening is None:
                self._open()
            self._settings.on_silent(self)
