"""Keeps one `Connection` to one place alive, and makes another when it ends.

A connection is up once the channel of the wake-ups is subscribed to and the scripts are loaded, so
whatever is sent on it can be woken and can run. What was not answered when a connection ended has
failed, and is never sent again by this module: the core of the backend knows what to say instead.

| event                                     | what the link does                                      |
|-------------------------------------------|---------------------------------------------------------|
| made                                      | `on_up`                                                 |
| cannot be made                            | `on_down`, then again after `backoff`                   |
| ends after it was up for a second or more | `on_down`, then at once again; sooner: after `backoff`  |
| the server closes it, no reply was due    | the same, but without an alarm                          |
| idle for `probe_interval`                 | PING                                                    |
| a reply is due for `_PATIENCE`            | makes a second one: the one that answers first stays    |
| a reply is due for `timeout`              | ends it                                                 |
| `leave`                                   | ends it                                                 |
| its task is cancelled by somebody         | makes it all the same: only `close` ends the link       |

The second connection is for a network that has forgotten the first one: a server that is only slow
answers on the first as soon as on the second, and the second is dropped. Two connections never carry
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
from genesis.backends.redis.errors import ConnectionLost, is_lasting, reason_of
from genesis.backends.redis.scripts import Script

__all__ = ["Link", "backoff"]

_PATIENCE = 0.5  # seconds without a reply after which a second connection is tried
_STEADY = 1.0  # seconds up after which the next failure counts as the first
_LATE = 0.1  # seconds; a timer that is later than this: this process stood still
_AGAIN = 0.05  # seconds after which a cancelled attempt is repeated: not in a loop that is ending


class Link:
    """See the module's text. Belongs to the event loop that runs when it is made.

    Args:
        endpoint: where to.
        channel: is subscribed to on each connection.
        scripts: are loaded on each connection.
        timeout: seconds within which a connection must be up, and a reply must come.
        probe_interval: seconds without traffic after which the connection is tried with a PING.
        on_up: called each time a connection is up.
        on_down: called with a reason (a word of `reason_of`, or `idle_closed`), a detail and whether
            it is an alarm, when a connection ended or could not be made; after everything that was
            pending on it was failed, and before the next `on_up`. No alarm: the server closed an idle
            connection, or the network had forgotten it; if it does not come back at once, an alarm
            follows.
        on_push: called with each wake-up of the connection that is up.
        on_silent: called now and then while a reply is overdue, as long as the connection is up.

    Attributes:
        why_down: why no connection is up; "" if one is.
        denied: the last attempt failed for what waiting does not mend: credentials, permissions, an
            unknown host, TLS, a server without RESP3.
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
            (b"HELLO", b"3"),  # also if a redis_connect_func of the application's has not
            (b"SUBSCRIBE", channel),
            *((b"SCRIPT", b"LOAD", script.source) for script in scripts),
        ]
        self._timeout = timeout
        self._patience = min(_PATIENCE, timeout / 2)
        self._probe_interval = probe_interval
        self._on_up = on_up
        self._on_down = on_down
        self._on_push = on_push
        self._on_silent = on_silent
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None  # up, or ending
        self._successor: Connection | None = None  # takes its place once it has ended
        self._opening: asyncio.Task[Connection] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._watch_timer: asyncio.TimerHandle | None = None
        self._watch_due = 0.0
        self._awake_since = 0.0  # by loop.time(): this process stood still until then
        self._second_look = False
        self._was_up = False
        self._up_since = 0.0
        self._failures = 0
        self._not_before = 0.0  # by loop.time(): the next try of a second connection
        self._closing = False
        self._open()

    @property
    def up(self) -> bool:
        return self._connection is not None and self._connection.up

    @property
    def silent(self) -> bool:
        """Whether the link is up, but a reply is overdue."""
        since = self._connection.silent_since() if self._connection is not None else None
        return since is not None and self._loop.time() - since >= self._patience

    @property
    def ended(self) -> bool:
        """After `close`: nothing of it is left in the loop."""
        return self._closing and self._connection is None and self._opening is None

    @property
    def connection(self) -> Connection | None:
        """The one that is up."""
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
        """Send a command, if the link is up: see `Connection.send`. If not, False, and nothing else."""
        connection = self._connection
        if connection is None or not connection.up:
            return False
        connection.send(parts, on_reply, urgent)
        return True

    def leave(self, reason: str, detail: str) -> None:
        """Give the connection up, if one is up, and make another."""
        if self._connection is not None and self._connection.up:
            self._connection.abort(reason, detail)

    def close(self) -> None:
        """End it, as `Connection.close` does; `on_down` is not called.

        What stands still is aborted by `wait_closed`, or after the timeout.
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
        """After `close`: wait until nothing of the link is left in the loop; the rest is aborted."""
        opening, connection = self._opening, self._connection
        while opening is not None and not opening.done():
            # Once is not enough: before Python 3.12, `wait_for` swallows a cancellation that comes in
            # the turn in which what it waits for is done.
            opening.cancel()
            await asyncio.wait({opening}, timeout=0.05)
        if connection is not None:
            await connection.wait_closed(timeout)

    # Making a connection

    def _open(self) -> None:
        self._retry = None
        # In no context: the task, the transport and all callbacks would keep that of a caller.
        self._opening = Context().run(
            self._loop.create_task, self._make(), name="genesis-redis-connect"
        )
        self._opening.add_done_callback(self._opened, context=Context())

    async def _make(self) -> Connection:
        made: list[Connection] = []
        try:
            await asyncio.wait_for(self._greet(made), self._timeout)
        except BaseException as error:
            for connection in made:
                connection.abort("closed", "it was not up in time")
            if isinstance(error, asyncio.TimeoutError):
                text = f"no connection within {self._timeout:g} s"
                raise redis_errors.TimeoutError(text) from None
            raise
        return made[0]

    async def _greet(self, made: list[Connection]) -> None:
        opened = self.endpoint.connection()
        connection = Connection(self._pushed, self._ended, self._busy)
        try:
            await opened.connect()  # type: ignore[no-untyped-call]
            await connection.take_over(opened)
        except BaseException:
            await opened.disconnect(nowait=True)
            raise
        made.append(connection)
        replies = await _replies(connection, self._greeting)
        if type(replies[1]) is not hiredis.PushNotification:
            raise _NoRESP3(f"HELLO 3 did not lead to RESP3: {replies[0]!r:.200}")

    def _opened(self, task: asyncio.Task[Connection]) -> None:
        self._opening = None
        if task.cancelled():
            if not self._closing:
                self._retry = self._loop.call_later(_AGAIN, self._open, context=Context())
            return
        error = task.exception()
        if error is not None:
            self._failed(error)
        elif self._closing:
            task.result().close()
        else:
            self._take(task.result())

    def _failed(self, error: BaseException) -> None:
        self._failures += 1
        pause = backoff(self._failures - 1)
        if self._closing:
            return
        if self._connection is not None:  # it was a second one
            self._not_before = self._loop.time() + pause
            return
        self.denied = is_lasting(error, self._was_up)
        self._retry = self._loop.call_later(pause, self._open, context=Context())
        self._down(reason_of(error), self.endpoint.tell(error), alarm=True)

    def _take(self, connection: Connection) -> None:
        """A connection is made: use it, unless there is one that answers."""
        old = self._connection
        if old is not None:
            if old.up and not self.silent:
                connection.close()
                return
            self._successor = connection
            if old.up:
                detail = f"no reply for {self._patience:g} s, but a new connection answers"
                old.abort("idle_closed" if old.idle else "timeout", detail)
            return
        if not connection.up:  # ended since it was made
            self._failed(redis_errors.ConnectionError("the server closed the connection"))
            return
        self._connection = connection
        self._was_up = True
        self._up_since = self._loop.time()
        self.why_down, self.denied = "", False
        self._watch_in(self._patience)
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
            self._take(successor)
        elif self._opening is None:
            pause = backoff(self._failures) if self._failures else 0.0
            self._failures += 1
            self._retry = self._loop.call_later(pause, self._open, context=Context())

    def _down(self, reason: str, detail: str, *, alarm: bool) -> None:
        self.why_down = detail
        self._guard(self._on_down, self, reason, detail, alarm)

    def _pushed(self, push: list[Any]) -> None:
        if self._connection is not None:  # what comes before it is up is older than any sync
            self._on_push(self, push)

    # Watching over it

    def _busy(self) -> None:
        """The first command after a quiet time."""
        self._watch_in(self._patience)

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
            # This process stood still: the reply may lie in the socket, so that time does not count.
            self._awake_since = now
        since = connection.silent_since()
        if since is None:
            self._second_look = False
            if (idle := now - connection.last_received) < self._probe_interval:
                connection.watched = False
                self._watch_in(self._probe_interval - idle)
                return
            connection.send((b"PING",), _ignore)
            since = now
        silent = now - max(since, self._awake_since)
        if silent < self._timeout:
            self._second_look = False
        elif self._second_look:
            connection.abort("timeout", f"no reply within {self._timeout:g} s")
            return
        else:  # timers may run before what has arrived is read
            self._second_look = True
            self._watch_in(min(0.02, self._timeout / 10))
            return
        if silent < self._patience:
            self._watch_in(self._patience - silent)
            return
        if self._on_silent is not None:
            self._guard(self._on_silent, self)
        if self._opening is None and self._retry is None and now >= self._not_before:
            self._open()
        self._watch_in(min(self._patience, self._timeout - silent))

    def _guard(self, callback: Callable[..., None], *arguments: Any) -> None:
        """An error in a callback must not end the link in silence."""
        try:
            callback(*arguments)
        except Exception as error:
            message = f"genesis: a callback of the link to Redis failed: {callback!r}"
            self._loop.call_exception_handler({"message": message, "exception": error})


class _NoRESP3(redis_errors.ResponseError):
    """Redis 6 and later speak RESP3, unless something between here and there does not."""


def _replies(connection: Connection, commands: Sequence[Sequence[bytes]]) -> asyncio.Future[list[Any]]:
    """Send commands together; resolves with their replies, or with the first error among them."""
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
    """Seconds until the next try: doubling from 20 ms to 1 s, half of it random."""
    most = min(1.0, 0.02 * 2.0 ** min(failures, 10))
    return random.uniform(most / 2, most)
