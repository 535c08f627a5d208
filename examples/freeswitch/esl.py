"""The event socket of one FreeSWITCH call: frames, commands with their replies, applications.

FreeSWITCH opens one connection per call (an outbound socket), and executes and reports on it:

- Replies have no number. They come in the order of the commands, with events in between. Each reply
  belongs to the oldest command without one, even if nobody awaits that one any more.
- `sendmsg ... execute` queues an application on the channel; its reply only confirms the queuing. The
  events of the application's start and end carry the `event-uuid` that the command chose.
- In `async` mode FreeSWITCH starts a queued application *within* a running playback, unless that was
  sent with `event-lock: true`. An announcement can therefore interrupt the music, which continues
  afterwards, and a hang-up would cut off an announcement that is not locked.
- With `linger` FreeSWITCH reports how a call ended, and leaves closing the connection to this side.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

__all__ = [
    "MAX_BODY",
    "MAX_HEADER",
    "CallEndedError",
    "Command",
    "EslConnection",
    "EslError",
    "Execution",
    "Frame",
    "happens_within",
    "read_frame",
]

MAX_HEADER = 4 * 1024 * 1024
"""Bytes. The reply to `connect` has all channel variables in its headers; one can have 300 kB."""
MAX_BODY = 8 * 1024 * 1024
CLOSE_SECONDS = 1.0


class EslError(Exception):
    """FreeSWITCH sent a malformed frame, or rejected a command."""


class CallEndedError(EslError):
    """The caller has hung up, or the connection has ended."""


class Frame(NamedTuple):
    """One message of FreeSWITCH. For an event, `headers` and `body` are those of the event."""

    kind: str
    headers: Mapping[str, str]
    body: bytes


def parse_headers(block: bytes) -> dict[str, str]:
    headers = {}
    for line in block.decode("utf-8", "replace").strip("\n").split("\n"):
        name, colon, value = line.partition(":")
        if not colon or not name:
            raise EslError(f"not a header: {line[:80]!r}")
        headers[name] = unquote(value.strip())
    return headers


def body_length(headers: Mapping[str, str]) -> int:
    text = headers.get("Content-Length", "0")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= MAX_BODY):
        raise EslError(f"not a Content-Length up to {MAX_BODY}: {text[:80]!r}")
    return int(text)


async def read_frame(reader: asyncio.StreamReader) -> Frame:
    """Read the next frame.

    Raises:
        EslError: it is malformed.
        CallEndedError: the connection ended before or within it.
    """
    try:
        headers = parse_headers(await reader.readuntil(b"\n\n"))
        length = body_length(headers)
        body = await reader.readexactly(length) if length else b""
    except asyncio.LimitOverrunError:
        raise EslError(f"a frame's headers are longer than {MAX_HEADER} bytes") from None
    except (asyncio.IncompleteReadError, OSError) as error:
        raise CallEndedError(f"the connection ended ({type(error).__name__})") from None
    # The channel's data, which reply to `connect`, are the one reply with an event's headers in it.
    kind = headers.get("Content-Type", "command/reply" if "Event-Name" in headers else "")
    if kind == "text/event-plain":
        block, _, body = body.partition(b"\n\n")
        headers = parse_headers(block)
        if body_length(headers) > len(body):
            raise EslError("an event's body is longer than the frame around it")
    return Frame(kind, headers, body)


class Command(NamedTuple):
    """A sent command, and the future of its reply."""

    text: str
    reply: asyncio.Future[Frame]


class Execution(NamedTuple):
    """An application queued on the channel. Each future resolves with the headers of an event."""

    command: Command
    started: asyncio.Future[Mapping[str, str]]
    completed: asyncio.Future[Mapping[str, str]]


class EslConnection:
    """One call's connection: reads frames, matches replies to commands, and tracks the call's state.

    Events are processed when they arrive and not stored, so a flood of events takes no memory.

    Args:
        reply_seconds: for FreeSWITCH to reply to a command.

    Attributes:
        ended: resolves with the reason as soon as the call is over for this side: the caller or the
            connection is gone, or the call went on to another extension.
        hung_up: resolves when the caller hangs up; FreeSWITCH has more to report about it.
        elsewhere: whether the call went on to another extension. If this connection is closed then,
            FreeSWITCH ends the `socket` or `park` there. It must stay open until the hang-up.
        bridged: whether the caller has talked to an agent.
        key: the digit that is accepted now; none if empty.
        key_pressed: resolves when the caller presses `key`.
        uuid: the call's Unique-ID, after the reply to `connect`.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reply_seconds: float
    ) -> None:
        loop = asyncio.get_running_loop()
        self._reader = reader
        self._writer = writer
        self._reply_seconds = reply_seconds
        self._unanswered: deque[asyncio.Future[Frame]] = deque()  # in the order of the commands
        self._executions: dict[str, Execution] = {}  # by event-uuid, until they have completed
        self._extension: tuple[str | None, ...] = ()
        self.ended: asyncio.Future[str] = loop.create_future()
        self.key_pressed: asyncio.Future[None] = loop.create_future()
        self.key = ""
        self.bridged = False
        self.hung_up: asyncio.Future[None] = loop.create_future()
        self.elsewhere = False
        self.uuid = ""

    async def connect(self) -> Mapping[str, str]:
        """Take over the call. Returns the channel's data."""
        channel = (await self.replies(self.send("connect"))).headers
        unique_id = channel.get("Unique-ID", "")
        if not unique_id or not unique_id.isascii() or not unique_id.isprintable() or " " in unique_id:
            raise EslError(f"the channel has no usable Unique-ID: {unique_id[:80]!r}")
        self.uuid = unique_id
        self._extension = _extension(channel)
        if channel.get("Answer-State") == "hangup":
            raise CallEndedError("the caller hung up before the call was taken over")
        return channel

    def execute(self, application: str, argument: str = "", *, lock: bool = False) -> Execution:
        """Queue an application on the channel.

        Args:
            lock: whether later applications wait for its end; otherwise they might start within it.
        """
        loop = asyncio.get_running_loop()
        event_uuid = str(uuid.uuid4())
        lines = [f"sendmsg {self.uuid}", "call-command: execute", f"execute-app-name: {application}"]
        if argument:
            lines.append(f"execute-app-arg: {argument}")
        lines.append(f"event-uuid: {event_uuid}")
        if lock:
            lines.append("event-lock: true")
        execution = Execution(self.send(*lines), loop.create_future(), loop.create_future())
        self._executions[event_uuid] = execution
        return execution

    def send(self, *lines: str) -> Command:
        """Write a command. Several can be sent before the first reply is awaited."""
        if any("\n" in line or "\r" in line for line in lines):
            raise EslError(f"a line break within a command: {lines!r}")
        command = Command(lines[0], asyncio.get_running_loop().create_future())
        if self.ended.done():
            _fail(command.reply, self.ended.result())
        else:
            self._unanswered.append(command.reply)
            self._writer.write(("\n".join(lines) + "\n\n").encode())
        return command

    async def replies(self, *sent: Command | Execution) -> Frame:
        """Wait for the replies to commands. Returns the last one.

        Raises:
            CallEndedError: the call ended, or no reply came in time; later replies could no longer be
                matched.
            EslError: FreeSWITCH rejected a command.
        """
        try:
            await self._writer.drain()  # backpressure: do not buffer if FreeSWITCH does not read
        except OSError as error:
            self.end(f"the connection ended ({type(error).__name__})")
        for one in sent:
            text, reply = one.command if isinstance(one, Execution) else one
            if not await happens_within(self._reply_seconds, reply):
                self.end(f"no reply to {text!r} within {self._reply_seconds:g} s")
                raise CallEndedError(self.ended.result())
            frame = reply.result()
            answer = frame.headers.get("Reply-Text", "") or frame.body.decode("utf-8", "replace")
            if answer.startswith("-"):
                raise EslError(f"{text!r} was refused: {answer.strip()[:200]}")
        return frame

    def end(self, reason: str) -> None:
        """The call is over for this side. Only the first reason counts."""
        if not self.ended.done():
            self.ended.set_result(reason)

    def let_go(self) -> None:
        """The call goes on without this side, unless it has ended."""
        if not self.ended.done():
            self.elsewhere = True
            self.end("the call went on to another extension")

    def _hang_up(self, reason: str) -> None:
        if not self.hung_up.done():
            self.hung_up.set_result(None)
        self.end(reason)

    async def read(self) -> None:
        """Read frames until the connection ends, or until FreeSWITCH has reported the call's end."""
        reason = "the connection was given up"
        try:
            while not await self._take(await read_frame(self._reader)):
                pass
        except EslError as error:
            reason = str(error)
        finally:
            self.end(reason)
            for reply in self._unanswered:
                _fail(reply, reason)
            self._unanswered.clear()

    async def _take(self, frame: Frame) -> bool:
        """Process one frame. Returns whether it was the last relevant one."""
        if frame.kind in ("command/reply", "api/response"):
            if not self._unanswered:
                raise EslError("a reply without a command")
            self._unanswered.popleft().set_result(frame)
        elif frame.kind == "text/event-plain":
            return self._take_event(frame.headers)
        elif frame.kind == "text/disconnect-notice":
            # With `linger`, this notice comes before or after the events of the hang-up.
            self._hang_up("disconnected")
            return frame.headers.get("Content-Disposition") != "linger"
        elif frame.kind == "text/rude-rejection":
            raise EslError("FreeSWITCH refused the connection (its ACL)")
        elif not frame.kind:
            raise EslError(f"a frame without a Content-Type: {sorted(frame.headers)[:5]}")
        return False

    def _take_event(self, event: Mapping[str, str]) -> bool:
        if event.get("Unique-ID") != self.uuid:
            return False  # the agent's channel
        name, application_uuid = event.get("Event-Name"), event.get("Application-UUID", "")
        if name == "CHANNEL_EXECUTE":
            if execution := self._executions.get(application_uuid):
                _resolve(execution.started, event)
        elif name == "CHANNEL_EXECUTE_COMPLETE":
            if execution := self._executions.pop(application_uuid, None):
                _resolve(execution.started, event)
                _resolve(execution.completed, event)
            # A transfer ends what is running, and then `socket`. From the first of these events on the
            # call is not ours, and gets no more commands.
            if event.get("Application") == "socket" or _extension(event) != self._extension:
                self.let_go()
        elif name == "CHANNEL_BRIDGE":
            self.bridged = True
        elif name == "DTMF":
            if self.key and event.get("DTMF-Digit") == self.key and not self.key_pressed.done():
                self.key_pressed.set_result(None)
        elif name in ("CHANNEL_HANGUP", "CHANNEL_HANGUP_COMPLETE"):
            self._hang_up(f"hung up ({event.get('Hangup-Cause', 'no cause')})")
        return name == "CHANNEL_HANGUP_COMPLETE"

    async def close(self) -> None:
        """Close the connection; abort it if FreeSWITCH does not read the remaining data."""
        self.end("closed")
        self._writer.close()  # before the first await, at which this might be cancelled
        try:
            with contextlib.suppress(asyncio.TimeoutError, OSError):
                await asyncio.wait_for(self._writer.wait_closed(), CLOSE_SECONDS)
        finally:
            self._writer.transport.abort()


async def happens_within(seconds: float, happening: asyncio.Future[Any]) -> bool:
    """Whether the future completes within `seconds`.

    It uses `asyncio.wait`: before Python 3.12, `wait_for` loses a cancellation that comes together with
    the result, and the call of a caller who has hung up would run for ever.
    """
    done, _ = await asyncio.wait({happening}, timeout=seconds)
    return bool(done)


def _extension(channel: Mapping[str, str]) -> tuple[str | None, ...]:
    """What a transfer changes."""
    return channel.get("Caller-Destination-Number"), channel.get("variable_transfer_history")


def _resolve(future: asyncio.Future[Mapping[str, str]], event: Mapping[str, str]) -> None:
    if not future.done():
        future.set_result(event)


def _fail(reply: asyncio.Future[Frame], reason: str) -> None:
    reply.set_exception(CallEndedError(reason))
    reply.exception()  # the waiting task might be gone
