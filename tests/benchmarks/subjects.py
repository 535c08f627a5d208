"""What is compared: queues under each kind of telemetry, waiters in a line, commands said bare."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias

import redis.asyncio
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.backends.protocol import EnterRequest, QueueBackend, Ticket
from genesis.observability import Telemetry
from genesis.observability.layer import ObservedBackend
from genesis.queue import RedisBackend
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

__all__ = [
    "QUIET",
    "SAMPLING",
    "Said",
    "Yardstick",
    "drain",
    "hand_offs",
    "hand_offs_on",
    "layers",
    "pairs",
    "pairs_on",
    "queues",
    "recorded",
    "side_by_side",
    "telemetry",
    "tracer_provider",
]

QUIET = 600.0
"""Seconds of lease, so that no heartbeat falls into a round."""

SAMPLING: dict[str, float | None] = {"no SDK": None, "1 % sampled": 0.01, "all recorded": 1.0}
"""The kinds of telemetry, by the share of traces that an SDK records."""

Enter: TypeAlias = Callable[[int], AbstractAsyncContextManager[Any]]
"""Makes the context of one item's passage through a line with one slot."""

Clock: TypeAlias = Callable[[], float]


def telemetry(sampled: float | None) -> Telemetry:
    """Sinks of its own. Recorded spans are dropped at their end: exporting is not the layer's cost."""
    provider = None if sampled is None else tracer_provider(sampled)
    return Telemetry(CollectorRegistry(), provider)


def tracer_provider(sampled: float) -> TracerProvider:
    sampler = ParentBased(TraceIdRatioBased(sampled))
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(SpanProcessor())
    return provider


@asynccontextmanager
async def queues(
    make: Callable[[], QueueBackend], kinds: Iterable[str] = SAMPLING
) -> AsyncIterator[dict[str, Queue]]:
    """A Queue, each on a backend of its own, for each kind of telemetry."""
    async with AsyncExitStack() as stack:
        made = {}
        for kind in kinds:
            queue = Queue(make(), telemetry=telemetry(SAMPLING[kind]))
            made[f"Queue, {kind}"] = await stack.enter_async_context(queue)
        yield made


def layers(make: Callable[[], QueueBackend]) -> dict[str, QueueBackend]:
    """A backend without the observing layer, and one in it for each kind of telemetry."""
    made = {"backend, bare": make()}
    for kind, sampled in SAMPLING.items():
        made[f"backend, {kind}"] = ObservedBackend(make(), telemetry(sampled), "benchmark")
    return made


async def pairs(
    queue: Queue, queue_id: str, count: int, tasks: int = 1, clock: Clock = time.perf_counter
) -> float:
    """Microseconds per enter + leave, with a slot free for each of `tasks`; `count` pairs a task."""

    async def call(number: int) -> None:
        item = f"item-{number}"
        for _ in range(count):
            async with queue.slot(queue_id, item_id=item, max_concurrent=tasks):
                pass

    return await side_by_side([call(number) for number in range(tasks)], count, clock)


async def side_by_side(calls: list[Any], count: int, clock: Clock = time.perf_counter) -> float:
    """Microseconds per operation of calls that run at once, `count` operations each."""
    began = clock()
    if len(calls) == 1:
        await calls[0]
    else:
        await asyncio.gather(*calls)
    return (clock() - began) / (len(calls) * count) * 1e6


async def drain(
    enter: Enter,
    waiters: int,
    all_wait: Callable[[], Awaitable[None]],
    clock: Clock = time.perf_counter,
) -> float:
    """Microseconds per hand-off when `waiters` pass a line of one slot, each leaving at once.

    From the release by the first holder until the last waiter is inside.
    """
    loop = asyncio.get_running_loop()
    inside, go = loop.create_future(), loop.create_future()
    last = loop.create_future()
    left = waiters

    async def first() -> float:
        async with enter(0):
            inside.set_result(None)
            await go
            return clock()

    async def call(number: int) -> None:
        nonlocal left
        async with enter(number):
            left -= 1
            if not left:
                last.set_result(clock())

    holder = loop.create_task(first())
    await inside
    tasks = [loop.create_task(call(number)) for number in range(1, waiters + 1)]
    await all_wait()
    go.set_result(None)
    ended: float = await last
    began = await holder
    await asyncio.wait(tasks)
    return (ended - began) / waiters * 1e6


async def hand_offs(
    queue: Queue,
    queue_id: str,
    waiters: int,
    clock: Clock = time.perf_counter,
    stood: Callable[[], None] = lambda: None,
) -> float:
    """Microseconds per hand-off of a `Queue`, as `drain` has them; `stood` is called before it."""

    def enter(number: int) -> AbstractAsyncContextManager[Any]:
        return queue.slot(queue_id, item_id=f"item-{number}", max_concurrent=1)

    return await drain(enter, waiters, _in_line(queue, queue_id, waiters, stood), clock)


async def hand_offs_on(
    backend: QueueBackend, queue_id: str, waiters: int, clock: Clock = time.perf_counter
) -> float:
    """Microseconds per hand-off of a backend, with no `Queue` around it."""

    def enter(number: int) -> _Passage:
        return _Passage(backend, EnterRequest(queue_id, f"item-{number}", 1))

    return await drain(enter, waiters, _in_line(backend, queue_id, waiters), clock)


async def pairs_on(
    backend: QueueBackend, queue_id: str, count: int, clock: Clock = time.perf_counter
) -> float:
    """Microseconds per enter + leave of a backend, with no `Queue` around it."""
    entry = EnterRequest(queue_id, "call", 1)

    async def call() -> None:
        for _ in range(count):
            admission = await backend.enter(entry)
            backend.leave(admission.ticket)

    return await side_by_side([call()], count, clock)


class _Passage:
    """One ticket's way through a backend."""

    __slots__ = ("_backend", "_entry", "_ticket")

    def __init__(self, backend: QueueBackend, entry: EnterRequest) -> None:
        self._backend = backend
        self._entry = entry
        self._ticket: Ticket | None = None

    async def __aenter__(self) -> None:
        admission = await self._backend.enter(self._entry)
        self._ticket = admission.ticket
        if admission.grant is None:
            await self._backend.wait(admission.ticket, None)

    async def __aexit__(self, *_: object) -> None:
        assert self._ticket is not None
        self._backend.leave(self._ticket)


def _in_line(
    line: Queue | QueueBackend, queue_id: str, waiters: int, stood: Callable[[], None] = lambda: None
) -> Callable[[], Awaitable[None]]:
    async def waiting() -> bool:
        return (await line.stats(queue_id)).waiting == waiters

    async def all_wait() -> None:
        await wait_until(waiting, f"{waiters} wait", timeout=300.0)
        stood()

    return all_wait


Said: TypeAlias = list[bytes]
"""One command, word by word."""


async def recorded(server: RedisServer, tasks: int) -> list[tuple[Said, Said]]:
    """The script calls with which `tasks` calls, all inside at once, enter and leave.

    Word by word as Redis' MONITOR shows them, so that a bare row can repeat the very same work without
    knowing how the backend does it.
    """
    async with Queue(RedisBackend(server.url, lease=QUIET)) as queue:
        async with queue.slot(f"bare-{tasks}", max_concurrent=tasks):
            pass  # so that the instance is known to the queue, and what follows is one script call each
        await queue._backend.flush()
        go, inside = asyncio.Event(), 0

        async def call() -> None:
            nonlocal inside
            async with queue.slot(f"bare-{tasks}", max_concurrent=tasks):
                inside += 1
                await go.wait()

        client: Any = server.client
        with client.monitor() as monitor:
            calls = [asyncio.create_task(call()) for _ in range(tasks)]
            await wait_until(lambda: inside == tasks, "all are inside")
            go.set()
            await asyncio.gather(*calls)
            await queue._backend.flush()
            client.echo("end")
            said: list[Said] = []
            while True:
                line = monitor.connection.read_response()
                words = [_unescaped(word) for word in _WORD.findall(line)]
                if words[0].upper() == b"ECHO":
                    break
                if words[0].upper() == b"EVALSHA":  # scripts cannot say it
                    said.append(words)
    # FIFO: they leave in the order in which they came
    assert len(said) == 2 * tasks, f"recorded {len(said)} script calls of {tasks} calls"
    return list(zip(said[:tasks], said[tasks:], strict=True))


_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"')


def _unescaped(word: str) -> bytes:
    """A word as MONITOR writes it, as it was."""
    return word.encode("latin-1").decode("unicode_escape").encode("latin-1")


class Yardstick:
    """Enter + leave as redis-py alone says them: the same two script calls, over its pool.

    The pool is as large as needed; redis-py's default one refuses more than 100 connections.
    """

    def __init__(self, url: str, said: list[tuple[Said, Said]]) -> None:
        self._said = said
        pool = redis.asyncio.ConnectionPool.from_url(url, max_connections=len(said) + 1)
        self._client: Any = redis.asyncio.Redis.from_pool(pool)

    async def pairs(self, count: int) -> float:
        say = self._client.execute_command

        async def call(enter: Said, leave: Said) -> None:
            for _ in range(count):
                await say(*enter)
                await say(*leave)

        return await side_by_side([call(*pair) for pair in self._said], count)

    async def close(self) -> None:
        await self._client.aclose()
