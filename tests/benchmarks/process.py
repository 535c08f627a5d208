"""One process of several: does what it is told, and says what it measured.

    python -m tests.benchmarks.process URL

Reads one JSON object a line from stdin; `do` names a method of `_Worker`, the rest are its arguments.
Writes one JSON line for every command but `enter`. Stamps are time.monotonic_ns, which on one machine
is the same clock in all processes.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from genesis import Queue
from genesis.queue import RedisBackend
from tests.benchmarks.relay import Relay
from tests.benchmarks.subjects import QUIET, SAMPLING, Yardstick, pairs, telemetry

__all__ = ["Process", "processes"]


class Process:
    """The benchmark's end of one."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._in = process.stdin
        self._out = process.stdout

    def tell(self, do: str, **arguments: Any) -> None:
        self._in.write(json.dumps({"do": do, **arguments}).encode() + b"\n")

    async def ask(self, do: str, **arguments: Any) -> Any:
        self.tell(do, **arguments)
        line = await asyncio.wait_for(self._out.readline(), 120)
        if not line:
            raise RuntimeError(f"a process of the benchmark ended while it was asked to {do}")
        return json.loads(line)

    async def close(self) -> None:
        self._in.close()
        await asyncio.wait_for(self._process.wait(), 60)


@asynccontextmanager
async def processes(url: str, count: int) -> AsyncIterator[list[Process]]:
    """Start them, and end them."""
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "tests.benchmarks.process", url)
    made = []
    try:
        for _ in range(count):
            limit = 64 << 20  # bytes of one line
            started = await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, limit=limit
            )
            made.append(Process(started))
        await asyncio.gather(*(process.ask("hello") for process in made))
        yield made
    finally:
        await asyncio.gather(*(process.close() for process in made))


class _Worker:
    """What the commands do."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self._url = url
        self._stack = stack
        self._queues: dict[str, Queue] = {}
        self._relays: dict[str, Relay] = {}
        self._calls: list[asyncio.Task[tuple[int, int, int]]] = []

    async def hello(self) -> str:
        return "ready"

    async def enter(self, kind: str, queue_id: str, times: int = 1, hold: float = 0.0) -> None:
        """Stand in the line of one slot with so many calls."""
        queue = await self._queue(kind)

        async def call() -> tuple[int, int, int]:
            async with queue.slot(queue_id, max_concurrent=1) as slot:
                inside = time.monotonic_ns()
                if hold:
                    await asyncio.sleep(hold)
                released = time.monotonic_ns()
            return slot.fencing_token, inside, released

        self._calls += [asyncio.create_task(call()) for _ in range(times)]

    async def passages(self) -> list[tuple[int, int, int]]:
        """When all calls have passed: token, when inside, when released, of each."""
        calls, self._calls = self._calls, []
        return list(await asyncio.gather(*calls))

    async def join(self, name: str, other: str) -> str:
        """Subscribe as one end of a relay, before the other one begins."""
        if name not in self._relays:
            relay = Relay(self._url, name, other)
            self._relays[name] = await self._stack.enter_async_context(relay)
        return "joined"

    async def relay(
        self, name: str, hops: int, begin: bool, hold: float, apart: bool
    ) -> list[tuple[int, int]]:
        return await self._relays[name].take_turns(hops, begin, hold, apart)

    async def pairs(self, kind: str, queue_id: str, count: int, tasks: int) -> tuple[int, int]:
        """When it began and when it ended."""
        queue = await self._queue(kind)
        began = time.monotonic_ns()
        await pairs(queue, queue_id, count, tasks)
        return began, time.monotonic_ns()

    async def bare(self, said: list[list[list[str]]], count: int) -> tuple[int, int]:
        words = [
            ([w.encode("latin-1") for w in enter], [w.encode("latin-1") for w in leave])
            for enter, leave in said
        ]
        yardstick = Yardstick(self._url, words)
        await yardstick.pairs(1)  # makes the connections
        began = time.monotonic_ns()
        await yardstick.pairs(count)
        ended = time.monotonic_ns()
        await yardstick.close()
        return began, ended

    async def _queue(self, kind: str) -> Queue:
        if kind not in self._queues:
            backend = RedisBackend(self._url, lease=QUIET)
            queue = Queue(backend, telemetry=telemetry(SAMPLING[kind]))
            self._queues[kind] = await self._stack.enter_async_context(queue)
        return self._queues[kind]


async def _main(url: str) -> None:
    reader = asyncio.StreamReader(limit=64 << 20)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with AsyncExitStack() as stack:
        worker = _Worker(url, stack)
        while line := await reader.readline():
            command = json.loads(line)
            do = command.pop("do")
            answer = await getattr(worker, do)(**command)
            if do != "enter":
                sys.stdout.write(json.dumps(answer) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
