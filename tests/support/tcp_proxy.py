"""A TCP proxy between the library and Redis that loses, holds and delays what passes through it."""

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
        subscriber: it has said SUBSCRIBE, so it is the connection of the wake-ups.
        heard: all that the client has said so far.
        answers: how many bytes the server has answered, whether or not anybody hears them.
        held_chunks: how many pieces of what the client said came while it was held.
    """

    def __init__(self, proxy: TcpProxy) -> None:
        self._proxy = proxy
        self._held = asyncio.Event()  # set while bytes to the server may pass
        self._held.set()
        # What is under way, and when it arrives: a delay is a longer way, not a narrower one.
        self._up: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self._down: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self.heard = bytearray()
        self.answers = 0
        self.held_chunks = 0
        self.subscriber = False
        self.deaf = False  # replies are thrown away
        self.forgotten = False
        self._last_traffic = math.inf
        self._client: asyncio.StreamWriter | None = None
        self._server: asyncio.StreamWriter | None = None

    def hold(self) -> None:
        """Keep what the client says from the server, even after the client has gone."""
        self._held.clear()

    def release(self) -> None:
        """Deliver what was held, late as it is."""
        self._held.set()

    async def arrive_late(self) -> None:
        """Release, and return when the server has answered."""
        answers = self.answers
        self.release()
        await wait_until(lambda: self.answers > answers, "the late bytes were carried out")

    @property
    def open(self) -> bool:
        """Whether the client is still there."""
        return self._client is not None and not self._client.is_closing()

    def cut(self) -> None:
        """Break it, on both sides; bytes that are held stay held, and can still be released."""
        if self._client is not None:
            self._client.close()
        if self._held.is_set() and self._server is not None:
            self._server.close()

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._client = writer
        from_server, self._server = await asyncio.open_connection("127.0.0.1", self._proxy.target)
        tasks = [
            asyncio.create_task(self._hear(reader)),
            asyncio.create_task(self._deliver(self._server)),
            asyncio.create_task(self._answer(from_server)),
            asyncio.create_task(self._hand_back(writer)),
        ]
        try:
            # Ends when the server has hung up, by itself or after the client's last word.
            await tasks[3]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for end in (writer, self._server):
                end.close()

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self._forget():
                    continue
                self.heard += data
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

    async def _answer(self, server: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await server.read(65536):
                if self._forget():
                    continue
                self.answers += len(data)
                self._down.put_nowait((self._arrival(), data))
        self._down.put_nowait((self._arrival(), b""))

    async def _hand_back(self, client: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await _arrived(self._down):
                if not self.deaf and not client.is_closing():
                    client.write(data)
                    await client.drain()

    def _forget(self) -> bool:
        """Whether the connection was without traffic for so long that it is forgotten."""
        now = asyncio.get_running_loop().time()
        self.forgotten = self.forgotten or now - self._last_traffic > self._proxy.forget_after
        self._last_traffic = now
        return self.forgotten

    def _arrival(self) -> float:
        return asyncio.get_running_loop().time() + self._proxy.delay


async def _arrived(way: asyncio.Queue[tuple[float, bytes]]) -> bytes:
    """What comes next, once it has arrived."""
    when, data = await way.get()
    await asyncio.sleep(when - asyncio.get_running_loop().time())
    return data


class TcpProxy:
    """Stands in front of the server on `target`, on a port of its own.

    Attributes:
        delay: seconds that every chunk takes, each way.
        mute: subscribers are held.
        refusing: new connections are closed at once.
        stalled: see `stall`.
        forget_after: seconds without traffic after which a connection is forgotten, as a NAT or a load
            balancer does: whatever comes then is dropped without a word.
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
        """The connection for commands that was made last."""
        return next(relay for relay in reversed(self.relays) if not relay.subscriber)

    @property
    def subscriber(self) -> Relay:
        """The connection for wake-ups that was made last."""
        return next(relay for relay in reversed(self.relays) if relay.subscriber)

    def cut(self) -> None:
        """Break every connection that there is."""
        for relay in self.relays:
            relay.cut()

    def release(self) -> None:
        """Deliver all that is held."""
        for relay in self.relays:
            relay.release()

    def stall(self) -> None:
        """Let nothing pass any more, on this connection or a new one, until `resume`."""
        self.stalled = True
        for relay in self.relays:
            relay.hold()
            relay.deaf = True

    def resume(self) -> None:
        """New connections work again; those that are there are cut, and what they held is lost."""
        self.stalled = False
        for relay in self.relays:
            relay.cut()

    @property
    def current(self) -> Relay:
        """The connection that was made last."""
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
