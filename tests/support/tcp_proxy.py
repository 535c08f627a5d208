"""A TCP proxy between the library and Redis that can drop, hold and delay bytes."""

from __future__ import annotations

import asyncio
import contextlib
import math
from types import TracebackType

from tests.support.waiting import wait_until

__all__ = ["Relay", "TcpProxy"]


class Relay:
    """One proxied connection.

    Attributes:
        subscriber: it has sent SUBSCRIBE, so wake-ups come on it.
        received: all bytes from the client so far.
        answers: the number of bytes from the server, forwarded or not.
        held_chunks: the number of chunks from the client that arrived while it was held.
    """

    def __init__(self, proxy: TcpProxy) -> None:
        self._proxy = proxy
        self._held = asyncio.Event()  # set while bytes to the server pass
        self._held.set()
        # Chunks in transit, with their time of arrival: a delay adds latency, and keeps the bandwidth.
        self._up: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self._down: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self.received = bytearray()
        self.answers = 0
        self.held_chunks = 0
        self.subscriber = False
        self.deaf = False  # replies are dropped
        self.forgotten = False
        self._last_traffic = math.inf
        self._client: asyncio.StreamWriter | None = None
        self._server: asyncio.StreamWriter | None = None

    def hold(self) -> None:
        """Hold the client's bytes back from the server, even after the client has disconnected."""
        self._held.clear()

    def release(self) -> None:
        """Deliver the held bytes, late."""
        self._held.set()

    async def arrive_late(self) -> None:
        """Release, and return when the server has replied."""
        answers = self.answers
        self.release()
        await wait_until(lambda: self.answers > answers, "the late bytes were carried out")

    @property
    def open(self) -> bool:
        """Whether the client is still connected."""
        return self._client is not None and not self._client.is_closing()

    def cut(self) -> None:
        """Close it on both sides. Held bytes stay held, and can still be released."""
        if self._client is not None:
            self._client.close()
        if self._held.is_set() and self._server is not None:
            self._server.close()

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._client = writer
        from_server, self._server = await asyncio.open_connection("127.0.0.1", self._proxy.target)
        tasks = [
            asyncio.create_task(self._receive(reader)),
            asyncio.create_task(self._deliver(self._server)),
            asyncio.create_task(self._read_replies(from_server)),
            asyncio.create_task(self._forward_replies(writer)),
        ]
        try:
            # Ends when the server has closed, by itself or after the client's last bytes.
            await tasks[3]
        finally:
            for end in (writer, self._server):  # first: this task might be cancelled while it waits
                end.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self._forget():
                    continue
                self.received += data
                if b"SUBSCRIBE" in data:
                    self.subscriber = True
                    if self._proxy.mute:
                        self.hold()
                self.held_chunks += not self._held.is_set()
                self._up.put_nowait((self._arrival(), data))
        self._up.put_nowait((self._arrival(), b""))

    async def _deliver(self, server: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await _arrived(self._up):
                await self._held.wait()
                server.write(data)
                await server.drain()
            server.write_eof()

    async def _read_replies(self, server: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await server.read(65536):
                if self._forget():
                    continue
                self.answers += len(data)
                self._down.put_nowait((self._arrival(), data))
        self._down.put_nowait((self._arrival(), b""))

    async def _forward_replies(self, client: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await _arrived(self._down):
                if not self.deaf and not client.is_closing():
                    client.write(data)
                    await client.drain()

    def _forget(self) -> bool:
        """Whether the connection was idle for longer than `forget_after`."""
        now = asyncio.get_running_loop().time()
        self.forgotten = self.forgotten or now - self._last_traffic > self._proxy.forget_after
        self._last_traffic = now
        return self.forgotten

    def _arrival(self) -> float:
        return asyncio.get_running_loop().time() + self._proxy.delay


async def _arrived(way: asyncio.Queue[tuple[float, bytes]]) -> bytes:
    """Wait for the next chunk to arrive."""
    when, data = await way.get()
    await asyncio.sleep(when - asyncio.get_running_loop().time())
    return data


class TcpProxy:
    """A proxy for the server on the port `target`, on its own port.

    Attributes:
        delay: seconds that every chunk takes, in each direction.
        mute: whether subscribers are held.
        refusing: whether new connections are closed at once.
        stalled: see `stall`.
        forget_after: idle seconds after which a connection is forgotten, as by a NAT or a load
            balancer: later bytes are dropped silently.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.delay = 0.0
        self.mute = False
        self.refusing = False
        self.stalled = False
        self.forget_after = math.inf
        self.relays: list[Relay] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.AbstractServer | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def commands(self) -> Relay:
        """The latest connection for commands."""
        return next(relay for relay in reversed(self.relays) if not relay.subscriber)

    @property
    def subscriber(self) -> Relay:
        """The latest connection for wake-ups."""
        return next(relay for relay in reversed(self.relays) if relay.subscriber)

    def cut(self) -> None:
        """Close every connection."""
        for relay in self.relays:
            relay.cut()

    def release(self) -> None:
        """Deliver all held bytes."""
        for relay in self.relays:
            relay.release()

    def stall(self) -> None:
        """Block all bytes, on current and new connections, until `resume`."""
        self.stalled = True
        for relay in self.relays:
            relay.hold()
            relay.deaf = True

    def resume(self) -> None:
        """Let new connections work again; close the current ones and drop their held bytes."""
        self.stalled = False
        for relay in self.relays:
            relay.cut()

    @property
    def current(self) -> Relay:
        """The latest connection."""
        return self.relays[-1]

    async def __aenter__(self) -> TcpProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        relay = Relay(self)
        if self.stalled:
            relay.hold()
            relay.deaf = True
        self.relays.append(relay)
        task = asyncio.create_task(self._run(relay, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(
        self, relay: Relay, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            with contextlib.suppress(OSError):
                await relay.run(reader, writer)
        finally:
            writer.close()
