"""The transport: what stands between `RedisBackend` and a real redis-server in a schedule.

    RedisBackend -> ScriptedEndpoint.connection() -> ScriptedConnection -> Pipe -> Server

`ScriptedConnection` is the whole boundary with the library, and the only class to change if the library
speaks to its connection otherwise. It offers what `Link` and `Subscriber` use of redis-py's connection:
connect, pack_command(s), send_packed_command, read_response, disconnect. Behind it nothing is imitated
but the network: every command is carried out by the real server, every reply and message is the
server's own. When each of them arrives, and whether it does, the schedule decides, by the methods of
`Pipe`.

One blocking connection to the server carries the commands of all pipes, so that a step has come to its
end, with every message that it published, when `Server.carry_out` returns. It speaks RESP3, in which
messages come on the same connection, in order; what the scripts answer is the same in RESP2.
"""

from __future__ import annotations

import asyncio
import math
import re
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import hiredis
from redis import exceptions as redis_errors
from redis._parsers.base import BaseParser
from redis.asyncio.connection import AbstractConnection, Connection

from genesis.backends.redis.endpoint import Endpoint
from tests.schedules.loop import VirtualLoop

__all__ = ["Command", "Network", "Pipe", "ScriptedConnection", "ScriptedEndpoint", "Server", "pack"]

Command = list[bytes]


class Server:
    """The real server, spoken to one step at a time.

    Args:
        path: of its unix socket.
    """

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(path)
        self._replies = hiredis.Reader(replyError=BaseParser.parse_error)
        self._messages: list[list[bytes]] = []
        self.ask("HELLO", "3")

    def carry_out(self, packed: bytes, replies: int) -> tuple[list[Any], list[list[bytes]]]:
        """Carry out what is packed; returns so many replies, and what was pushed meanwhile."""
        self._socket.sendall(packed)
        found: list[Any] = []
        while len(found) < replies:
            received = self._socket.recv(1 << 16)
            if not received:
                raise ConnectionError("redis-server has gone")
            self._replies.feed(received)
            while (reply := self._replies.gets()) is not False:
                if isinstance(reply, hiredis.PushNotification):
                    self._messages.append(reply)
                else:
                    found.append(reply)
        messages, self._messages = self._messages, []
        return found, messages

    def ask(self, *words: Any) -> Any:
        """One command of the schedule's own."""
        return self.carry_out(pack(words), 1)[0][0]

    def busy_seconds(self) -> float:
        """Seconds of CPU that the server has used."""
        found = re.findall(rb"used_cpu_(?:user|sys):([\d.]+)", self.ask("INFO", "cpu"))
        return sum(map(float, found))

    def close(self) -> None:
        self._socket.close()


def pack(words: Iterable[Any]) -> bytes:
    packed: bytes = hiredis.pack_command(tuple(words))
    return packed


class Pipe:
    """One connection, and all that is on its way in it.

    A command is in `outgoing` from when it was written until the server has carried it out, its reply
    in `incoming` until it has arrived at the client, in `inbox` until it is read. A message is pushed
    into `incoming` of the pipe that listens to its channel.
    """

    def __init__(self, loop: VirtualLoop, owner: int, number: int) -> None:
        self.loop = loop
        self.owner = owner
        self.number = number
        self.connecting: asyncio.Future[None] | None = None
        self.open = False
        self.broken = False  # it was open, or about to be, and is no more
        self.outgoing: deque[Command] = deque()
        self.incoming: deque[Any] = deque()
        self.inbox: deque[Any] = deque()
        self.late: deque[Command] = deque()  # written, given up, and still able to arrive
        self.stalled = False  # what is on its way to the client stays there
        self.held = False  # what is on its way to the server stays there
        self.channels: list[bytes] = []
        self._reader: asyncio.Future[None] | None = None

    # -- what the schedule does ---------------------------------------------------------------------

    def accept(self) -> None:
        """The connection stands."""
        connecting, self.connecting = self.connecting, None
        assert connecting is not None
        if not connecting.done():
            self.open = True
            connecting.set_result(None)

    def refuse(self) -> None:
        connecting, self.connecting = self.connecting, None
        assert connecting is not None
        if not connecting.done():
            connecting.set_exception(redis_errors.ConnectionError("refused"))

    def deliver(self) -> None:
        """The next reply or message arrives."""
        self.inbox.append(self.incoming.popleft())
        self._wake()

    def cut(self, arriving: int) -> None:
        """The connection breaks; the first `arriving` of the commands on their way arrive later."""
        self._give_up(arriving)
        self._wake()

    # -- what the client does -----------------------------------------------------------------------

    def write(self, commands: Iterable[Command]) -> None:
        if not self.open:
            raise redis_errors.ConnectionError("the connection is closed")
        self.outgoing.extend(commands)

    async def read(self, timeout: float) -> Any:
        """The next that has arrived; None after `timeout` seconds."""
        timer = None
        try:
            while not self.inbox:
                if not self.open:
                    raise redis_errors.ConnectionError("the connection was closed by the server")
                reader = self._reader = self.loop.create_future()
                if timeout < math.inf and timer is None:
                    timer = self.loop.call_later(timeout, _expire, reader)
                await reader
        except TimeoutError:
            return None
        finally:
            self._reader = None
            if timer is not None:
                timer.cancel()
        reply = self.inbox.popleft()
        if isinstance(reply, redis_errors.ResponseError):
            raise reply
        return reply

    def hang_up(self) -> None:
        """The client closes it. What it has written may arrive all the same."""
        if self.connecting is not None:
            self.connecting = None
            self.broken = True
        if self.open:
            self._give_up(len(self.outgoing))

    def _give_up(self, arriving: int) -> None:
        self.open = False
        self.broken = True
        self.late.extend(list(self.outgoing)[:arriving])
        self.outgoing.clear()
        self.incoming.clear()
        self.channels.clear()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


def _expire(reader: asyncio.Future[None]) -> None:
    if not reader.done():
        reader.set_exception(TimeoutError())


class Network:
    """All pipes of a schedule, in front of one server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.pipes: list[Pipe] = []

    def pipe(self, loop: VirtualLoop, owner: int) -> Pipe:
        pipe = Pipe(loop, owner, len(self.pipes))
        self.pipes.append(pipe)
        return pipe

    def carry_out(
        self, pipe: Pipe, command: Command, probe: bytes, probed: int
    ) -> tuple[Any, list[Any]]:
        """Let the server carry out one command, and look at once what it has now.

        Returns:
            The reply, which is on its way to the client if the pipe is open; the replies to `probe`.
        """
        kind = command[0].upper()
        own = 0 if kind == b"SUBSCRIBE" else 1
        replies, messages = self.server.carry_out(pack(command) + probe, own + probed)
        reply = replies[0] if own else None
        if kind == b"SUBSCRIBE":
            pipe.channels += command[1:]
        elif pipe.open:
            # A RESP2 connection that listens is answered so; the real one speaks RESP3.
            answer = [b"pong", b""] if kind == b"PING" and pipe.channels else reply
            pipe.incoming.append(answer)
        for message in messages:
            for listener in self.pipes:
                if message[1] in listener.channels:
                    listener.incoming.append(message)
        return reply, replies[own:]

    def load_scripts(self, pipe: Pipe) -> None:
        """Carry out all the SCRIPT LOADs in front in one go: nothing else can be said before them."""
        loads = []
        while pipe.outgoing and pipe.outgoing[0][0] == b"SCRIPT":
            loads.append(pack(pipe.outgoing.popleft()))
        replies, _ = self.server.carry_out(b"".join(loads), len(loads))
        pipe.incoming.extend(replies)


class ScriptedConnection:
    """What the library sees of a pipe: the part of redis-py's connection that it uses."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._written = hiredis.Reader()  # splits what was packed into commands

    async def connect(self) -> None:
        connecting = self._pipe.connecting = self._pipe.loop.create_future()
        await connecting

    def pack_command(self, *words: Any) -> list[bytes]:
        return [pack(words)]

    def pack_commands(self, commands: Iterable[Sequence[Any]]) -> list[bytes]:
        return [pack(words) for words in commands]

    async def send_packed_command(
        self, packed: bytes | Iterable[bytes], check_health: bool = True
    ) -> None:
        for chunk in [packed] if isinstance(packed, bytes) else packed:
            self._written.feed(chunk)
        commands: list[Command] = []
        while (command := self._written.gets()) is not False:
            commands.append(command)
        self._pipe.write(commands)

    async def read_response(
        self, timeout: float = math.inf, *, disconnect_on_error: bool = True
    ) -> Any:
        return await self._pipe.read(timeout)

    async def disconnect(self, nowait: bool = False) -> None:
        self._pipe.hang_up()


class ScriptedEndpoint(Endpoint):
    """Stands in for the place that a backend connects to."""

    def __init__(self, make: Callable[[], Pipe]) -> None:
        super().__init__(Connection, {})
        self._make = make

    def connection(self) -> AbstractConnection:
        return cast(AbstractConnection, ScriptedConnection(self._make()))
