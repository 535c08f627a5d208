"""A FreeSWITCH outbound-socket application: callers wait their turn to music, then talk to an agent.

    python examples/freeswitch_outbound.py --agent user/1000 --agent user/1001 \\
        --redis redis://localhost:6379

FreeSWITCH opens one connection per call. The call is answered, hears music, waits in `queue.slot(...)`
under its Unique-ID, and holds the slot until its conversation has ended. The dialplan names two
instances: if a caller's instance is stopped or dies, the caller moves to the other one and keeps its
place:

    <extension name="agents">
      <condition field="destination_number" expression="^5000$">
        <action application="set" data="socket_resume=true"/>
        <action application="socket" data="10.0.0.1:9696 async full"/>
        <action application="socket" data="10.0.0.2:9696 async full"/>
        <action application="hangup" data="NORMAL_TEMPORARY_FAILURE"/>
      </condition>
    </extension>

Without `socket_resume`, a caller whose instance dies before it has read the connection hears nothing,
for ever. If there is only one instance, name it in the second `socket` action too: it might be up again
by then.

On SIGTERM it hands over the waiting callers, lets conversations finish (for at most `--drain` seconds),
and stops. A second signal stops it at once.

**A conversation outlives its controller.** If this process dies, conversations continue, as they
should. But its slots are reaped after the lease, and the next caller might be connected to an agent who
is still talking. Agents' phones must therefore refuse a second call (call waiting off): FreeSWITCH then
reports USER_BUSY, and the next agent is called.

`freeswitch/esl.py` implements the protocol, `freeswitch/call.py` handles a call, and
`freeswitch/settings.py` has the settings. README.md lists what the caller hears in each case.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script run by path has only its own folder

from examples.freeswitch.call import handle_call
from examples.freeswitch.esl import MAX_HEADER
from examples.freeswitch.settings import Agents, Settings
from genesis import Queue
from genesis.observability import ObservabilityServer, configure
from genesis.queue import RedisBackend

__all__ = ["Service", "main", "serve"]

logger = logging.getLogger("freeswitch")


class Service:
    """Accepts calls.

    Attributes:
        port: the port that it listens on.
    """

    def __init__(self, queue: Queue, settings: Settings) -> None:
        self._queue = queue
        self._settings = settings
        # Not used: it makes a bad setting an error now, and not one for each call.
        queue.semaphore(
            settings.queue_id,
            settings.calls_at_once,
            timeout=settings.timeout,
            max_waiting=settings.max_waiting,
        )
        self._agents = Agents(settings.agents)
        self._stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._calls: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        self._server = await asyncio.start_server(
            self._accept, host, port, limit=MAX_HEADER, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _keep_alive(writer.get_extra_info("socket"))
        call = asyncio.ensure_future(
            handle_call(reader, writer, self._queue, self._settings, self._agents, self._stopping)
        )
        self._calls.add(call)

        def ended(call: asyncio.Task[None]) -> None:
            self._calls.discard(call)
            writer.close()  # a task cancelled before its first step runs no `finally`

        call.add_done_callback(ended)

    async def drain(self, seconds: float) -> int:
        """Accept no more calls, hand over the waiting callers, and wait for the conversations.

        FreeSWITCH can no longer connect, so it continues with the next `socket` action, both for new
        calls and for those that are handed over.

        Returns:
            The number of calls left after `seconds`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        if self._server is not None:
            self._server.close()
        if not self._stopping.done():
            self._stopping.set_result(None)
        await self._queue.drain(seconds)
        if self._calls:  # who hears an announcement, or was transferred
            await asyncio.wait(self._calls, timeout=max(0.0, deadline - loop.time()))
        return len(self._calls)

    async def close(self) -> None:
        """End all calls. Conversations continue without this instance; waiters are handed over."""
        if self._server is not None:
            self._server.close()
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()


@contextlib.asynccontextmanager
async def serve(
    queue: Queue, settings: Settings, host: str = "127.0.0.1", port: int = 9696
) -> AsyncIterator[Service]:
    """Accept calls during the block."""
    service = Service(queue, settings)
    await service.start(host, port)
    try:
        yield service
    finally:
        await service.close()


def _keep_alive(connection: socket.socket) -> None:
    """Use TCP keepalive to detect within two minutes that FreeSWITCH's machine is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A FreeSWITCH outbound-socket waiting line.")
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="where FreeSWITCH connects to")
    add("--port", type=int, default=9696)
    add("--redis", metavar="URL", help="share the line; in this process if left out")
    add("--queue", default=Settings.queue_id, help="the name of the line")
    add("--agent", action="append", help="dial string of an agent; once for each agent")
    add("--limit", type=int, help="calls with agents at once; one for each agent if left out")
    add("--ring", type=int, default=Settings.ring_seconds, help="seconds an agent's phone rings")
    add("--timeout", type=float, default=Settings.timeout, help="seconds to wait at most")
    add("--max-waiting", type=int, help="callers in the line at most")
    add("--music", default=Settings.music, help="for instance local_stream://moh")
    add("--sorry", default=Settings.sorry, help="played when the wait was too long")
    add(
        "--speech",
        default=Settings.speech,
        help="speaks position and estimate, which replace {}: for instance say:flite:kal:{}",
    )
    add("--leave-key", default=Settings.leave_key, help="a key to leave the line, for instance 1")
    add("--overflow", default=Settings.overflow, help="extension for a full line and for the key")
    add("--drain", type=float, default=300.0, help="seconds to let conversations finish on SIGTERM")
    add("--metrics-port", type=int, help="serve /metrics, /health and /ready there")
    return parser.parse_args(arguments)


def settings_of(options: argparse.Namespace) -> Settings:
    return Settings(
        queue_id=options.queue,
        agents=tuple(options.agent or Settings.agents),
        limit=options.limit,
        ring_seconds=options.ring,
        timeout=options.timeout,
        max_waiting=options.max_waiting,
        music=options.music,
        sorry=options.sorry,
        speech=options.speech,
        leave_key=options.leave_key,
        overflow=options.overflow,
    )


async def run(options: argparse.Namespace) -> None:
    """Serve calls until SIGINT or SIGTERM."""
    stop, stop_now = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (stop_now if stop.is_set() else stop).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    async with contextlib.AsyncExitStack() as stack:
        backend = RedisBackend(options.redis) if options.redis else None
        queue = await stack.enter_async_context(Queue(backend))
        if options.metrics_port is not None:
            server = ObservabilityServer(queue, port=options.metrics_port)
            await stack.enter_async_context(server)
        service = await stack.enter_async_context(
            serve(queue, settings_of(options), options.host, options.port)
        )
        logger.info("waiting for calls on %s:%d", options.host, service.port)
        await stop.wait()
        logger.info("draining: waiting callers are handed over, conversations can finish")
        draining = asyncio.ensure_future(service.drain(options.drain))
        impatient = asyncio.ensure_future(stop_now.wait())
        await asyncio.wait({draining, impatient}, return_when=asyncio.FIRST_COMPLETED)
        for task in (draining, impatient):
            task.cancel()


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    with configure("freeswitch-outbound"):
        asyncio.run(run(options))


if __name__ == "__main__":
    main()
