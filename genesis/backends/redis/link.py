"""`Link`: keeps one `Connection` to one server alive, and reconnects when it ends.

A connection is up when the wake-up channel is subscribed and the scripts are loaded: every command sent
on it can run, and its wake-ups arrive. Pending commands fail when a connection ends. This module never
retries them; the core sends a `sync` instead.

| event                                          | action                                             |
|------------------------------------------------|----------------------------------------------------|
| connected                                      | `on_up`                                            |
| cannot connect                                 | `on_down`, retry after `backoff`                   |
| the connection ends after 1 s up or more       | `on_down`, reconnect at once                       |
| the connection ends sooner                     | `on_down`, reconnect after `backoff`               |
| the server closes it while no reply is due     | the same, but without an alarm                     |
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
from typing import Any

import hiredis
from redis import exceptions as redis_errors

from genesis.backends.redis.connection import Connection, OnReply
from genesis.backends.redis.endpoint import Endpoint
from genesis.backends.redis.errors import ConnectionLost, is_permanent, reason_of
from genesis.backends.redis.scripts import Script

__all__ = ["Link", "backoff"]

_SECOND_AFTER = 0.5  # seconds without a due reply after which a second connection is opened
_STEADY = 1.0  # seconds up after which the count of failures restarts
_LATE = 0.1  # seconds; a timer that fires later than this shows that the process was stopped
_RETRY_CANCELLED = 0.05  # seconds until a cancelled attempt is retried, unless the loop ends first


class Link:
    """See the module docstring. Belongs to the event loop that runs when it is created.

    Args:
        endpoint: the server.
        channel: subscribed to on each connection.
        scripts: loaded on each connection.
        timeout: seconds within which a connection must be up, and within which a reply must come.
        probe_interval: seconds without traffic after which a PING is sent.
        on_up: called each time a connection is up.
        on_down: called with a reason (of `reason_of`, or `idle_closed`), a detail and an alarm flag
            when a connection ended or could not be opened, after its pending commands have failed and
            before the next `on_up`. It is no alarm if an idle connection was closed by the server or
            dropped by the network; an alarm follows if the link cannot reconnect at once.
        on_push: called with each wake-up of the connection that is up.
        on_silent: called repeatedly while a reply is overdue and the connection is up.

    Attributes:
        why_down: why no connection is up; "" if one is up.
        denied: the last attempt failed for a reason that a retry does not fix: credentials,
            permissions, an unknown host, TLS, or a server without RESP3.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        channel: bytes,
        scripts: Sequence[Script],
        timeout: float,
        probe_interval: float,
        on_up: Callable[[Link], None],
        on_down: Callable[[Link, str, str, bool], None],
        on_push: Callable[[Link, list[Any]], None],
        on_silent: Callable[[Link], None] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.why_down = "not connected yet"
        self.denied = False
        self._greeting = [
            (b"HELLO", b"3"),  # a custom redis_connect_func might not have sent it
            (b"SUBSCRIBE", channel),
            *((b"SCRIPT", b"LOAD", script.source) for script in scripts),
        ]
        self._timeout = timeout
        self._second_after = min(_SECOND_AFTER, timeout / 2)
        self._probe_interval = probe_interval
        self._on_up = on_up
        self._on_down = on_down
        self._on_push = on_push
        self._on_silent = on_silent
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None  # up, or ending
        self._successor: Connection | None = None  # replaces it when it has ended
        self._opening: asyncio.Task[Connection] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._watch_timer: asyncio.TimerHandle | None = None
        self._watch_due = 0.0
        self._awake_since = 0.0  # by loop.time(): the process was stopped until then
        self._timed_out = False  # a reply exceeded `timeout`; checked once more before aborting
        self._was_up = False
        self._up_since = 0.0
        self._failures = 0
        self._not_before = 0.0  # by loop.time(): no second connection earlier
        self._closing = False
        self._open()

    @property
    def up(self) -> bool:
        return self._connection is not None and self._connection.up

    @property
    def silent(self) -> bool:
        """Whether the link is up, but a reply is overdue."""
        since = self._connection.silent_since() if self._connection is not None else None
        return since is not None and self._loop.time() - since >= self._second_after

    @property
    def ended(self) -> bool:
        """Whether `close` has completed: no connection and no task is left."""
        return self._closing and self._connection is None and self._opening is None

    @property
    def connection(self) -> Connection | None:
        """The connection that is up, if any."""
        return self._connection if self.up else None

    def call(
        self,
        script: Script,
        keys: Sequence[bytes],
        arguments: Sequence[bytes],
        on_reply: OnReply,
        urgent: bool = True,
    ) -> bool:
        """Send an EVALSHA; see `send`."""
        parts = (b"EVALSHA", script.sha, b"%d" % len(keys), *keys, *arguments)
        return self.send(parts, on_reply, urgent)

    def send(self, parts: Sequence[bytes], on_reply: OnReply, urgent: bool = True) -> bool:
        """Send a command, see `Connection.send`. If the link is down, only return False."""
        connection = self._connection
        if connection is None or not connection.up:
            return False
        connection.send(parts, on_reply, urgent)
        return True

    def reconnect(self, reason: str, detail: str) -> None:
        """Abort the connection that is up, if any, and reconnect."""
        if self._connection is not None and self._connection.up:
            self._connection.abort(reason, detail)

    def close(self) -> None:
        """Close the link as `Connection.close` does. `on_down` is not called.

        If no reply comes, the connection is aborted by `wait_closed`, or after `timeout`.
        """
        if self._closing:
            return
        self._closing = True
        self.why_down = "the backend was closed"
        for timer in (self._retry, self._watch_timer):
            if timer is not None:
                timer.cancel()
        if self._opening is not None:
            self._opening.cancel()
        if self._successor is not None:
            self._successor.abort("closed", self.why_down)
        connection = self._connection
        if connection is not None and connection.up:
            connection.close()
            if not connection.closed:
                detail = f"no reply within {self._timeout:g} s"
                self._watch_timer = self._loop.call_later(
                    self._timeout, connection.abort, "timeout", detail, context=Context()
                )

    async def wait_closed(self, timeout: float = 1.0) -> None:
        """After `close`: wait until the connection has ended; after `timeout` seconds, abort it."""
        opening, connection = self._opening, self._connection
        while opening is not None and not opening.done():
            # In a loop, because before Python 3.12 `wait_for` swallows a cancellation that arrives in
            # the iteration in which its future completes.
            opening.cancel()
            await asyncio.wait({opening}, timeout=0.05)
        if connection is not None:
            await connection.wait_closed(timeout)

    # Connecting

    def _open(self) -> None:
        self._retry = None
        # An empty context: the task, the transport and all callbacks would keep that of a caller.
        self._opening = Context().run(
            self._loop.create_task, self._connect(), name="genesis-redis-connect"
        )
        self._opening.add_done_callback(self._opened, context=Context())

    async def _connect(self) -> Connection:
        connected: list[Connection] = []
        try:
            await asyncio.wait_for(self._handshake(connected), self._timeout)
        except BaseException as error:
            for connection in connected:
                connection.abort("closed", "it was not up in time")
            if isinstance(error, asyncio.TimeoutError):
                text = f"no connection within {self._timeout:g} s"
                raise redis_errors.TimeoutError(text) from None
            raise
        return connected[0]

    async def _handshake(self, connected: list[Connection]) -> None:
        opened = self.endpoint.connection()
        connection = Connection(self._pushed, self._ended, self._busy)
        try:
            await opened.connect()  # type: ignore[no-untyped-call]
            await connection.take_over(opened)
        except BaseException:
            await opened.disconnect(nowait=True)
            raise
        connected.append(connection)
        replies = await _replies(connection, self._greeting)
        if type(replies[1]) is not hiredis.PushNotification:
            raise _NoRESP3(f"HELLO 3 did not lead to RESP3: {replies[0]!r:.200}")

    def _opened(self, task: asyncio.Task[Connection]) -> None:
        self._opening = None
        if task.cancelled():
            if not self._closing:
                self._retry = self._loop.call_later(_RETRY_CANCELLED, self._open, context=Context())
            return
        error = task.exception()
        if error is not None:
            self._failed(error)
        elif self._closing:
            task.result().close()
        else:
            self._use(task.result())

    def _failed(self, error: BaseException) -> None:
        self._failures += 1
        pause = backoff(self._failures - 1)
        if self._closing:
            return
        if self._connection is not None:  # it was a second connection
            self._not_before = self._loop.time() + pause
            return
        self.denied = is_permanent(error, self._was_up)
        self._retry = self._loop.call_later(pause, self._open, context=Context())
        self._down(reason_of(error), self.endpoint.redact(error), alarm=True)

    def _use(self, connection: Connection) -> None:
        """Use a new connection, unless the current one replies again."""
        old = self._connection
        if old is not None:
            if old.up and not self.silent:
                connection.close()
                return
            self._successor = connection
            if old.up:
                detail = f"no reply for {self._second_after:g} s, but a new connection answers"
                old.abort("idle_closed" if old.idle else "timeout", detail)
            return
        if not connection.up:  # it has ended since
            self._failed(redis_errors.ConnectionError("the server closed the connection"))
            return
        self._connection = connection
        self._was_up = True
        self._up_since = self._loop.time()
        self.why_down, self.denied = "", False
        self._watch_in(self._second_after)
        self._guard(self._on_up, self)

    def _ended(self, connection: Connection, why: ConnectionLost) -> None:
        if connection is self._successor:
            self._successor = None
        if connection is not self._connection:
            return
        self._connection = None
        if self._watch_timer is not None:
            self._watch_timer.cancel()
        if self._closing:
            return
        if self._loop.time() - self._up_since >= _STEADY:
            self._failures = 0
        successor, self._successor = self._successor, None
        forgotten = successor is not None or why.reason == "idle_closed"
        self._down("idle_closed" if forgotten else why.reason, why.detail, alarm=not forgotten)
        if self._closing:
            return
        if successor is not None:
            self._use(successor)
        elif self._opening is None:
            pause = backoff(self._failures) if self._failures else 0.0
            self._failures += 1
            self._retry = self._loop.call_later(pause, self._open, context=Context())

    def _down(self, reason: str, detail: str, *, alarm: bool) -> None:
        self.why_down = detail
        self._guard(self._on_down, self, reason, detail, alarm)

    def _pushed(self, push: list[Any]) -> None:
        if self._connection is not None:  # a push before `on_up` is older than any sync
            self._on_push(self, push)

    # Supervision

    def _busy(self) -> None:
        """The first command after an idle period was sent."""
        self._watch_in(self._second_after)

    def _watch_in(self, seconds: float) -> None:
        if self._watch_timer is not None:
            self._watch_timer.cancel()
        self._watch_due = self._loop.time() + seconds
        self._watch_timer = self._loop.call_later(seconds, self._watch, context=Context())

    def _watch(self) -> None:
        self._watch_timer = None
        connection, now = self._connection, self._loop.time()
        if connection is None or not connection.up:
            return
        if now - self._watch_due > _LATE:
            # The process was stopped: a reply might be in the socket, so that time does not count.
            self._awake_since = now
        since = connection.silent_since()
        if since is None:
            self._timed_out = False
            if (idle := now - connection.last_received) < self._probe_interval:
                connection.watched = False
                self._watch_in(self._probe_interval - idle)
                return
            connection.send((b"PING",), _ignore)
            since = now
        silent = now - max(since, self._awake_since)
        if silent < self._timeout:
            self._timed_out = False
        elif self._timed_out:
            connection.abort("timeout", f"no reply within {self._timeout:g} s")
            return
        else:  # check again shortly: the loop might run timers before it reads the socket
            self._timed_out = True
            self._watch_in(min(0.02, self._timeout / 10))
            return
        if silent < self._second_after:
            self._watch_in(self._second_after - silent)
            return
        if self._on_silent is not None:
            self._guard(self._on_silent, self)
        if self._opening is None and self._retry is None and now >= self._not_before:
            self._open()
        self._watch_in(min(self._second_after, self._timeout - silent))

    def _guard(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Run a callback. Its error is reported and must not end the link."""
        try:
            callback(*arguments)
        except Exception as error:
            message = f"genesis: a callback of the link to Redis failed: {callback!r}"
            self._loop.call_exception_handler({"message": message, "exception": error})


class _NoRESP3(redis_errors.ResponseError):
    """The server, or a proxy before it, does not speak RESP3."""


def _replies(connection: Connection, commands: Sequence[Sequence[bytes]]) -> asyncio.Future[list[Any]]:
    """Send commands together. Resolves with all replies, or with the first error among them."""
    done: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
    replies: list[Any] = []

    def on_reply(reply: Any) -> None:
        replies.append(reply)
        if done.done():
            return
        if isinstance(reply, Exception):
            done.set_exception(reply)
        elif len(replies) == len(commands):
            done.set_result(replies)

    for command in commands:
        connection.send(command, on_reply)
    return done


def _ignore(reply: Any) -> None:
    pass


def backoff(failures: int) -> float:
    """Seconds until the next attempt: exponential from 20 ms to 1 s, with up to half of it jitter."""
    most = min(1.0, 0.02 * 2.0 ** min(failures, 10))
    return random.uniform(most / 2, most)
