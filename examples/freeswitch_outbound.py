"""A FreeSWITCH outbound-socket application: callers wait their turn to music, then talk to an agent.

Dialplan: `<action application="socket" data="127.0.0.1:9696 async full"/>`. FreeSWITCH connects once
a call. The call is answered and hears music, waits in `queue.slot(...)` under its Unique-ID, is
bridged when its turn comes, and holds the slot until it ends. Whatever ends the call (a hang-up, a
connection that is cut, bytes that make no sense), its place is free at once:

    python examples/freeswitch_outbound.py --limit 5 --agent user/1000 --redis redis://localhost:6379

What the protocol asks for, and the code below relies on:

- Replies bear no number. They come in the order of the commands, with events in between, so each
  reply goes to the oldest command without one, also to one that nobody awaits any more.
- Executed applications queue up on the channel. `uuid_break` ends the one that runs, and only that:
  sent before the music has begun it does nothing, and a bridge behind endless music never starts.
  So it is sent once the music is known to play, and again if the music does not stop.
- With `linger` FreeSWITCH still tells how a call ended after it has, and leaves closing to this side.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote

from opentelemetry import trace

from genesis import BackendUnavailableError, EvictedError, Queue, QueueTimeoutError
from genesis.observability import ObservabilityServer, configure
from genesis.queue import RedisBackend

__all__ = ["CallEndedError", "EslConnection", "EslError", "Frame", "Settings", "handle_call", "serve"]

MAX_HEADER = 256 * 1024  # bytes; a channel with many variables takes some 20 kB
MAX_BODY = 4 * 1024 * 1024
CLOSE_SECONDS = 1.0

logger = logging.getLogger("freeswitch")
tracer = trace.get_tracer("genesis.examples.freeswitch")


@dataclass(frozen=True)
class Settings:
    """What a call is to meet."""

    queue_id: str = "agents"
    limit: int = 5
    timeout: float | None = 300.0
    agent: str = "user/1000"
    music: str = "tone_stream://%(2000,4000,440,480);loops=-1"
    sorry: str = "tone_stream://%(500,500,480,620);loops=4"
    reply_seconds: float = 10.0  # for FreeSWITCH to answer a command
    sorry_seconds: float = 30.0  # for the announcement and the hang-up after it
    linger_seconds: float = 2.0  # to hear how the call ended, once it has
    break_seconds: float = 1.0  # for the music to begin, and to stop


class EslError(Exception):
    """FreeSWITCH said something that makes no sense, or refused a command."""


class CallEndedError(EslError):
    """The caller is gone, or the connection is."""


class Frame(NamedTuple):
    """One message of FreeSWITCH. Of an event, `headers` and `body` are the event's own."""

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
    """The next frame.

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
    # The channel's data, which answer `connect`, are the one reply with an event's headers in it.
    kind = headers.get("Content-Type", "command/reply" if "Event-Name" in headers else "")
    if kind == "text/event-plain":
        block, _, body = body.partition(b"\n\n")
        headers = parse_headers(block)
        if body_length(headers) > len(body):
            raise EslError("an event's body is longer than the frame around it")
    return Frame(kind, headers, body)


class Said(NamedTuple):
    """A command on its way, and its reply to come."""

    command: str
    reply: asyncio.Future[Frame]


class EslConnection:
    """One call's connection: takes frames apart, matches replies, and notes how the call fares.

    Events are not kept. Each is looked at as it arrives, so that a flood of them takes no memory.

    Attributes:
        ended: resolves with the reason as soon as the caller or the connection is gone.
        hung_up: whether it was the caller, and FreeSWITCH has more to say about it.
        bridged: whether the caller has talked to an agent.
        channel: the channel's data, once `connect` was answered.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reply_seconds: float
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._reply_seconds = reply_seconds
        self._unanswered: deque[asyncio.Future[Frame]] = deque()  # in the order of the commands
        self._started: dict[str, asyncio.Event] = {}  # by application
        self._completed: dict[str, asyncio.Event] = {}
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.bridged = False
        self.hung_up = False
        self.channel: Mapping[str, str] = {}
        self.uuid = ""

    def started(self, application: str) -> asyncio.Event:
        """Set once the application runs on the channel."""
        return self._started.setdefault(application, asyncio.Event())

    def completed(self, application: str) -> asyncio.Event:
        """Set once the application has run."""
        return self._completed.setdefault(application, asyncio.Event())

    async def connect(self) -> str:
        """Take over the call; returns its Unique-ID."""
        channel = (await self.answered(self.say("connect"))).headers
        uuid = channel.get("Unique-ID", "")
        if not uuid or not uuid.isascii() or not uuid.isprintable() or " " in uuid:
            raise EslError(f"the channel has no usable Unique-ID: {uuid[:80]!r}")
        self.channel, self.uuid = channel, uuid
        if channel.get("Answer-State") == "hangup":
            raise CallEndedError("the caller hung up before the call was taken over")
        return uuid

    def execute(self, application: str, argument: str = "") -> Said:
        """Queue an application on the channel."""
        lines = [f"sendmsg {self.uuid}", "call-command: execute", f"execute-app-name: {application}"]
        if argument:
            lines.append(f"execute-app-arg: {argument}")
        return self.say(*lines)

    def say(self, *lines: str) -> Said:
        """Write a command. Several may be said before the first reply is awaited."""
        if any("\n" in line or "\r" in line for line in lines):
            raise EslError(f"a line break within a command: {lines!r}")
        said = Said(lines[0], asyncio.get_running_loop().create_future())
        if self.ended.done():
            _fail(said.reply, self.ended.result())
        else:
            self._unanswered.append(said.reply)
            self._writer.write(("\n".join(lines) + "\n\n").encode())
        return said

    async def answered(self, *commands: Said) -> Frame:
        """Wait for the replies to commands; returns the last.

        Raises:
            CallEndedError: the call ended, or no reply came in time, after which none could be
                matched any more.
            EslError: FreeSWITCH refused one.
        """
        try:
            await self._writer.drain()  # a FreeSWITCH that does not read stops us, not our memory
        except OSError as error:
            self.end(f"the connection ended ({type(error).__name__})")
        for said in commands:
            if not await _within(self._reply_seconds, said.reply):
                self.end(f"no reply to {said.command!r} within {self._reply_seconds:g} s")
                raise CallEndedError(self.ended.result())
            frame = said.reply.result()
            text = frame.headers.get("Reply-Text", "") or frame.body.decode("utf-8", "replace")
            if text.startswith("-"):
                raise EslError(f"{said.command!r} was refused: {text.strip()[:200]}")
        return frame

    def end(self, reason: str) -> None:
        """The call is over; only the first reason counts."""
        if not self.ended.done():
            self.ended.set_result(reason)

    async def read(self) -> None:
        """Take in frames until the connection ends, or all is told about a call that has."""
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
        """Act on one frame; returns whether it was the last of interest."""
        if frame.kind in ("command/reply", "api/response"):
            if not self._unanswered:
                raise EslError("a reply without a command")
            self._unanswered.popleft().set_result(frame)
        elif frame.kind == "text/event-plain":
            return self._take_event(frame.headers)
        elif frame.kind == "text/disconnect-notice":
            self.hung_up = True
            self.end("disconnected")
            return frame.headers.get("Content-Disposition") != "linger"
        elif frame.kind == "text/rude-rejection":
            raise EslError("FreeSWITCH refused the connection (its ACL)")
        elif not frame.kind:
            raise EslError(f"a frame without a Content-Type: {sorted(frame.headers)[:5]}")
        return False

    def _take_event(self, event: Mapping[str, str]) -> bool:
        if event.get("Unique-ID") != self.uuid:
            return False  # the agent's channel
        name, application = event.get("Event-Name"), event.get("Application", "")
        if name == "CHANNEL_EXECUTE":
            self.started(application).set()
        elif name == "CHANNEL_EXECUTE_COMPLETE":
            self.completed(application).set()
        elif name == "CHANNEL_BRIDGE":
            self.bridged = True
            _log("bridged", self.uuid, agent=event.get("Other-Leg-Unique-ID", ""))
        elif name in ("CHANNEL_HANGUP", "CHANNEL_HANGUP_COMPLETE"):
            self.hung_up = True
            self.end(f"hung up ({event.get('Hangup-Cause', 'no cause')})")
        return name == "CHANNEL_HANGUP_COMPLETE"

    async def close(self) -> None:
        """Close the connection, by force if FreeSWITCH does not take what is left to write."""
        self.end("closed")
        self._writer.close()
        try:
            await asyncio.wait_for(self._writer.wait_closed(), CLOSE_SECONDS)
        except (asyncio.TimeoutError, OSError):
            self._writer.transport.abort()


async def handle_call(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, queue: Queue, settings: Settings
) -> None:
    """Serve one call, from the connection to its end; never raises but on cancellation."""
    connection = EslConnection(reader, writer, settings.reply_seconds)
    reading = asyncio.ensure_future(connection.read())
    call = asyncio.ensure_future(_serve_call(connection, queue, settings))
    try:
        either: set[asyncio.Future[Any]] = {call, connection.ended}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        try:
            # The place first: whoever is next does not wait for this connection's end.
            call.cancel()
            (outcome,) = await asyncio.gather(call, return_exceptions=True)
            if isinstance(outcome, EslError):
                connection.end(str(outcome))
            elif isinstance(outcome, Exception):
                logger.error("the call failed", exc_info=outcome, extra={"item_id": connection.uuid})
            if connection.hung_up:
                await asyncio.wait({reading}, timeout=settings.linger_seconds)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await connection.close()
            _log("ended", connection.uuid, reason=connection.ended.result())


async def _serve_call(connection: EslConnection, queue: Queue, settings: Settings) -> None:
    item_id = await connection.connect()
    _log("connected", item_id)
    with tracer.start_as_current_span("call", attributes={"genesis.item_id": item_id}):
        await connection.answered(
            connection.say("linger"),
            connection.say("myevents plain"),
            connection.execute("answer"),
            connection.execute("playback", settings.music),
        )
        try:
            async with queue.slot(
                settings.queue_id,
                item_id=item_id,
                max_concurrent=settings.limit,
                timeout=settings.timeout,
            ) as slot:
                _log("granted", item_id, waited=slot.waited)
                await _talk(connection, settings)
                if slot.lost:
                    _log("slot lost while talking", item_id)
        except (QueueTimeoutError, EvictedError, BackendUnavailableError) as error:
            _log("not served", item_id, reason=str(error))
            await _send_away(connection, settings)


async def _talk(connection: EslConnection, settings: Settings) -> None:
    """Bridge the caller to the agent, and return when the two have done."""
    await _within(settings.break_seconds, connection.started("playback"))
    await connection.answered(
        connection.say(f"api uuid_break {connection.uuid} all"),
        connection.execute("bridge", settings.agent),
    )
    await _stop_music(connection, settings)
    await connection.completed("bridge").wait()
    # The agent has hung up, or was not reached: the caller's channel is still there.
    cause = "NORMAL_CLEARING" if connection.bridged else "USER_BUSY"
    await connection.answered(connection.execute("hangup", cause))
    await _within(settings.sorry_seconds, connection.ended)


async def _stop_music(connection: EslConnection, settings: Settings) -> None:
    for _ in range(3):
        if await _within(settings.break_seconds, connection.completed("playback")):
            return
        if connection.started("bridge").is_set():
            return
        await connection.answered(connection.say(f"api uuid_break {connection.uuid} all"))


async def _send_away(connection: EslConnection, settings: Settings) -> None:
    """Tell the caller that nobody will come, and hang up."""
    await _within(settings.break_seconds, connection.started("playback"))
    await connection.answered(
        connection.say(f"api uuid_break {connection.uuid} all"),
        connection.execute("playback", settings.sorry),
        connection.execute("hangup", "NORMAL_TEMPORARY_FAILURE"),
    )
    await _stop_music(connection, settings)
    await _within(settings.sorry_seconds, connection.ended)


async def _within(seconds: float, happening: asyncio.Event | asyncio.Future[Any]) -> bool:
    """Whether it happens within `seconds`.

    By `asyncio.wait`: before Python 3.12 `wait_for` forgets a cancellation that comes together with
    the result, and the call of a caller who is gone would go on for ever.
    """
    if isinstance(happening, asyncio.Future):
        done, _ = await asyncio.wait({happening}, timeout=seconds)
        return bool(done)
    waiting = asyncio.ensure_future(happening.wait())
    try:
        done, _ = await asyncio.wait({waiting}, timeout=seconds)
        return bool(done)
    finally:
        waiting.cancel()


def _fail(reply: asyncio.Future[Frame], reason: str) -> None:
    reply.set_exception(CallEndedError(reason))
    reply.exception()  # whoever asked may be gone


@contextlib.asynccontextmanager
async def serve(
    queue: Queue, settings: Settings, host: str = "127.0.0.1", port: int = 9696
) -> AsyncIterator[int]:
    """Accept calls within the block; gives the port. On leaving it, calls in progress are ended."""
    calls: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _keep_alive(writer.get_extra_info("socket"))
        call = asyncio.ensure_future(handle_call(reader, writer, queue, settings))
        calls.add(call)
        call.add_done_callback(calls.discard)

    server = await asyncio.start_server(accept, host, port, limit=MAX_HEADER, backlog=1024)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await server.wait_closed()


def _keep_alive(connection: socket.socket) -> None:
    """Notice within two minutes that FreeSWITCH's machine is gone; nothing else would."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _log(event: str, item_id: str, **fields: object) -> None:
    text = " ".join(f"{name}={value!r}" for name, value in fields.items())
    extra = {"event": event, "item_id": item_id, **fields}
    logger.info("%s item_id=%s %s", event, item_id, text, extra=extra)


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A FreeSWITCH outbound-socket waiting line.")
    parser.add_argument("--host", default="127.0.0.1", help="where FreeSWITCH connects to")
    parser.add_argument("--port", type=int, default=9696)
    parser.add_argument("--redis", metavar="URL", help="share the line; in this process if left out")
    parser.add_argument("--queue", default=Settings.queue_id, help="the name of the line")
    parser.add_argument("--limit", type=int, default=Settings.limit, help="calls with agents at once")
    parser.add_argument(
        "--timeout", type=float, default=Settings.timeout, help="seconds to wait at most"
    )
    parser.add_argument("--agent", default=Settings.agent, help="dial string of the agents")
    parser.add_argument("--music", default=Settings.music, help="for instance local_stream://moh")
    parser.add_argument("--sorry", default=Settings.sorry, help="played when the wait was too long")
    parser.add_argument("--metrics-port", type=int, help="serve /metrics, /health and /ready there")
    return parser.parse_args(arguments)


async def run(options: argparse.Namespace) -> None:
    """Serve calls until SIGINT or SIGTERM."""
    settings = Settings(
        queue_id=options.queue,
        limit=options.limit,
        timeout=options.timeout,
        agent=options.agent,
        music=options.music,
        sorry=options.sorry,
    )
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        backend = RedisBackend(options.redis) if options.redis else None
        queue = await stack.enter_async_context(Queue(backend))
        if options.metrics_port is not None:
            server = ObservabilityServer(queue, port=options.metrics_port)
            await stack.enter_async_context(server)
        port = await stack.enter_async_context(serve(queue, settings, options.host, options.port))
        logger.info("waiting for calls on %s:%d", options.host, port)
        await stop.wait()


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    with configure("freeswitch-outbound"):
        asyncio.run(run(options))


if __name__ == "__main__":
    main()
