"""One RESP3 connection as an asyncio protocol: callbacks, no task and no stream.

redis-py opens and authenticates the connection; then `Connection` takes over its transport. Commands
are written in the order of `send`, and Redis replies in that order: the next reply belongs to the
oldest command without one. Pushes (wake-ups) share the connection, in one order with the replies.

| state   | `send`             | bytes arrive      | `close`    | `abort`, the peer ends it |
|---------|--------------------|-------------------|------------|---------------------------|
| up      | written, or queued | a reply or a push | -> closing | -> ending                 |
| closing | `ConnectionLost`   | a reply or a push | nothing    | -> ending                 |
| ending  | `ConnectionLost`   | ignored           | nothing    | nothing                   |
| ended   | `ConnectionLost`   | ignored           | nothing    | nothing                   |

*closing* lasts until no reply is pending. If a socket is closed while replies arrive, the kernel resets
the connection, and Redis drops commands that it has not read. *ending* lasts until the event loop has
dropped the transport and every pending command has failed, in order and in bounded iterations of the
loop; then `closed` is done. No command is ever sent twice.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any, cast

import hiredis
from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection

from genesis.backends.redis.errors import ConnectionLost

OnReply = Callable[[Any], None]

_AT_ONCE = 2  # commands until bytes arrive: a task leaves, and enters again
_MAX_PER_TURN = 512  # commands written, replies processed or commands failed per iteration of the loop
_MAX_BYTES_PER_TURN = 1 << 18
_QUIET = 1.0  # seconds
_NO_REPLY_YET = object()
_SUBSCRIBED = (b"subscribe", b"ssubscribe")  # pushes that are the reply to a command
_DISCARD = struct.pack("ii", 1, 0)  # SO_LINGER of 0: closing discards unsent data and sends a reset


def resolve(future: asyncio.Future[Any], reply: Any) -> None:
    """Pass on a reply, unless nobody waits for it any more."""
    if not future.done():
        future.set_result(reply)


class Connection(asyncio.Protocol):
    """See the module docstring. Belongs to the event loop that runs when it is created.

    Every callback runs in an empty `contextvars.Context`, never in that of a caller. If one raises, the
    error goes to the loop's exception handler, and the connection continues.

    Args:
        on_push: called with each push, except the confirmation of a SUBSCRIBE or SSUBSCRIBE, which is
            the reply to that command.
        on_busy: called by the first `send` after `watched` was set to False.

    Attributes:
        closed: resolves with the reason when the connection has ended.
        last_received: by `loop.time()`, when bytes last arrived.
        watched: see `on_busy`.
        up: whether commands can be sent.
    """

    def __init__(self, on_push: Callable[[list[Any]], None], on_busy: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        self._context = Context()
        self._on_push = on_push
        self._on_busy = on_busy
        self._transport: asyncio.Transport
        reader = hiredis.Reader(notEnoughData=_NO_REPLY_YET)
        self._feed = reader.feed
        self._next_reply = reader.gets
        self._pending: deque[OnReply] = deque()  # sent, in the order in which replies will come
        self._outgoing: deque[bytes] = deque()  # not written yet
        self._written = 0  # commands written at once since bytes arrived, or the last flush
        self._flushing = False  # a flush is scheduled, or waits for the transport's buffer to drain
        self._paused = False
        self._behind = False  # received replies wait for the next iteration of the loop
        self._why_ended: ConnectionLost | None = None
        self.up = True
        self.closed: asyncio.Future[ConnectionLost] = self._loop.create_future()
        self.watched = True
        # By loop.time(): `_waiting_since` is when the last command was sent while none was pending.
        self.last_received = self._waiting_since = self._time()

    async def take_over(self, opened: AbstractConnection) -> None:
        """Take over the transport of a connection that redis-py has opened.

        `_reader` and `_writer` are private names: redis-py has no public access to the transport. Every
        reply to its own commands has been read. Only a push can have arrived since, in the stream's
        buffer. If its parser ever held a part of a push, the next bytes would not parse as RESP, and
        the link would reconnect.

        Raises:
            redis.exceptions.ConnectionError: it is closed already.
        """
        reader, writer = opened._reader, opened._writer
        if reader is None or writer is None or writer.transport.is_closing() or reader.at_eof():
            raise redis_errors.ConnectionError("the server closed the connection during the handshake")
        opened._reader = opened._writer = None  # `opened` must not close it when it is collected
        self._streams = reader, writer  # they would close the transport when they are collected
        self._transport = cast(asyncio.Transport, writer.transport)
        # Nothing here suspends: no byte can arrive between the old protocol and the new one.
        self._transport.set_protocol(self)
        reader.feed_eof()  # so that `read` returns what it has, without waiting
        early = await reader.read()  # also resumes reading if the stream had paused it
        self.last_received = self._time()
        if early:
            self.data_received(early)

    @property
    def idle(self) -> bool:
        """Whether no command is pending, or none was for a while before the oldest pending one."""
        return not self._pending or self._waiting_since - self.last_received >= _QUIET

    def silence(self) -> float | None:
        """Seconds for which a reply has been due and nothing has arrived; None if none is due."""
        if not self._pending or self._why_ended is not None:
            return None
        return self._time() - max(self._waiting_since, self.last_received)

    def send(self, parts: Sequence[bytes], on_reply: OnReply) -> None:
        """Send a command. Its position in the order of commands is fixed before this returns.

        The first `_AT_ONCE` commands since bytes arrived are written at once: Redis executes them while
        the task continues. The others are written together, in the next iteration of the loop.

        `on_reply` is called exactly once, never before this returns: with the reply, with a
        `hiredis.ReplyError` if Redis rejects the command, or with `ConnectionLost`.
        """
        data = hiredis.pack_command(tuple(parts))  # type: ignore[arg-type]  # bytes is what it takes
        if not self.up:
            why = self._why_ended or ConnectionLost("closed", "the connection was closed")
            self._loop.call_soon(on_reply, why, context=self._context)
            return
        if not self._pending:
            self._waiting_since = self._time()
            if not self.watched:
                self.watched = True
                self._on_busy()
        self._pending.append(on_reply)
        outgoing = self._outgoing
        if self._written < _AT_ONCE and not outgoing and not self._paused:
            # Not counted per iteration, which would need a callback in each.
            self._written += 1
            self._transport.write(data)
            return
        outgoing.append(data)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush, context=self._context)

    def request(self, parts: Sequence[bytes]) -> asyncio.Future[Any]:
        """Send a command. The future resolves with what `on_reply` would get, errors included."""
        future = self._loop.create_future()
        self.send(parts, partial(resolve, future))
        return future

    def abort(self, reason: str, detail: str) -> None:
        """End the connection at once. The kernel discards its unsent data.

        Pending commands fail in later iterations of the loop, never before this returns.
        """
        if not self.closed.done():
            with suppress(OSError, AttributeError, ValueError):  # ValueError: uvloop, if it is closed
                # Without SO_LINGER, the kernel might retry the delivery for minutes.
                linger = self._transport.get_extra_info("socket").setsockopt
                linger(socket.SOL_SOCKET, socket.SO_LINGER, _DISCARD)
            self._transport.abort()
        self._end(ConnectionLost(reason, detail))

    def close(self) -> None:
        """Accept no more commands, and end the connection after the last pending reply."""
        self.up = False
        if not self._pending and self._why_ended is None:
            self._transport.close()
            self._end(ConnectionLost("closed", "the connection was closed"))

    # Called by the transport

    def data_received(self, data: bytes) -> None:
        self._feed(data)
        self._written = 0
        if not self._behind:
            self._take_replies()

    def pause_writing(self) -> None:
        self._paused = self._flushing = True

    def resume_writing(self) -> None:
        self._paused = False
        self._loop.call_soon(self._flush, context=self._context)

    def connection_lost(self, error: Exception | None) -> None:
        detail = "the server closed the connection" if error is None else f"{error}"
        self._fail(self._end(ConnectionLost("idle_closed" if self.idle else "connection", detail)))

    # Scheduled by `call_soon`

    def _flush(self) -> None:
        if self._paused or self._why_ended is not None:
            return
        self._flushing, self._written = False, 0
        outgoing = self._outgoing
        if not outgoing:
            return
        chunk: list[bytes] = []
        size = 0
        while outgoing and len(chunk) < _MAX_PER_TURN and size < _MAX_BYTES_PER_TURN:
            chunk.append(outgoing.popleft())
            size += len(chunk[-1])
        self._transport.write(b"".join(chunk))
        if outgoing and not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush, context=self._context)

    def _take_replies(self) -> None:
        behind, self._behind = self._behind, False
        self.last_received = self._time()
        next_reply, pending = self._next_reply, self._pending
        try:
            for _ in range(_MAX_PER_TURN):
                if self._why_ended is not None:
                    return
                reply = next_reply()
                if reply is _NO_REPLY_YET:
                    if behind:
                        self._transport.resume_reading()
                    if not self.up:
                        self.close()
                    return
                if type(reply) is hiredis.PushNotification and reply[0] not in _SUBSCRIBED:
                    callback = self._on_push
                else:
                    callback = pending.popleft()
                try:
                    callback(reply)
                except Exception as error:
                    message = f"genesis: a callback of a Redis connection failed: {callback!r}"
                    self._loop.call_exception_handler({"message": message, "exception": error})
        except (hiredis.ProtocolError, IndexError) as error:
            self.abort("connection", f"what the server sent is no reply: {error!r}")
            return
        # More than fit in one iteration. The end of the connection must not overtake what was received.
        self._behind = True
        if not behind:
            self._transport.pause_reading()
        self._loop.call_soon(self._take_replies, context=self._context)

    def _end(self, why: ConnectionLost) -> ConnectionLost:
        """Returns why the connection has ended: the first reason counts."""
        if self._why_ended is None:
            self.up = False
            self._why_ended = why
            self._outgoing.clear()
        return self._why_ended

    def _fail(self, why: ConnectionLost) -> None:
        # With a `call_soon` for each, the loop reports the error of one and continues with the next.
        pending, call_soon = self._pending, self._loop.call_soon
        for _ in range(min(_MAX_PER_TURN, len(pending))):
            call_soon(pending.popleft(), why, context=self._context)
        if pending:
            call_soon(self._fail, why, context=self._context)
        else:
            call_soon(self.closed.set_result, why, context=self._context)
