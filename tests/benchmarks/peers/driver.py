"""One library in a process of its own, made to do the same rows as every other.

    python driver.py LIBRARY URL LOOP

Run as a file, not as a module, by the interpreter of the library's own virtual environment: it must not
see this repository, because one of the libraries has the same import name. It imports nothing of its
neighbours. LOOP is asyncio or uvloop. Reads one JSON object a line, {"row": ..., ...}, and answers each
with {"figure": ...} or {"error": ...}.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

MANY = 2_000  # connections: more than any row needs
QUIET = 600.0  # seconds of lease, so that no heartbeat falls into a round
SETTLE = 1.0  # seconds in which waiters take their places; most libraries cannot be asked

Prepare = Callable[[str, int, int], Awaitable[Callable[[], Any]]]
"""For a queue, its limit and the number of a task: makes that task's `async with` context, as often as
it is called."""


def _client(url: str) -> Any:
    redis = importlib.import_module("redis.asyncio")
    return redis.Redis.from_url(url, max_connections=MANY)


async def ours(url: str) -> Prepare:
    """This library, now or as it was; every operation observed, by an SDK that samples 1 %."""
    queue_module = importlib.import_module("genesis.queue")
    observability = importlib.import_module("genesis.observability")
    trace = importlib.import_module("opentelemetry.sdk.trace")
    sampling = importlib.import_module("opentelemetry.sdk.trace.sampling")
    registry = importlib.import_module("prometheus_client").CollectorRegistry()
    sampler = sampling.ParentBased(sampling.TraceIdRatioBased(0.01))
    provider = trace.TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(trace.SpanProcessor())
    telemetry = observability.Telemetry(registry, provider)
    queue = queue_module.Queue(queue_module.RedisBackend(url, lease=QUIET), telemetry=telemetry)

    async def prepare(queue_id: str, limit: int, number: int) -> Callable[[], Any]:
        return lambda: queue.slot(queue_id, item_id=f"item-{number}", max_concurrent=limit)

    return prepare


async def genesis(url: str) -> Prepare:
    queue_module = importlib.import_module("genesis.queue")
    queue = queue_module.Queue(queue_module.RedisBackend(url))

    async def prepare(queue_id: str, limit: int, number: int) -> Callable[[], Any]:
        return lambda: queue.slot(queue_id, max_concurrent=limit)

    return prepare


async def py_redis_semaphore(url: str) -> Prepare:
    library = importlib.import_module("redis_semaphore")
    client = _client(url)

    async def prepare(queue_id: str, limit: int, number: int) -> Callable[[], Any]:
        config = library.SemaphoreConfig(name=queue_id, limit=limit)
        return lambda: library.Semaphore(client, config)

    return prepare


async def self_limiters(url: str) -> Prepare:
    library = importlib.import_module("self_limiters")
    made: dict[str, Any] = {}

    async def prepare(queue_id: str, limit: int, number: int) -> Callable[[], Any]:
        if queue_id not in made:  # one for all tasks: each has a pool of its own
            made[queue_id] = library.Semaphore(
                queue_id, limit, max_sleep=300.0, redis_url=url, connection_pool_size=MANY
            )
        return lambda: made[queue_id]

    return prepare


async def redsync(url: str) -> Prepare:
    library = importlib.import_module("redsync")
    client = _client(url)

    async def prepare(queue_id: str, limit: int, number: int) -> Callable[[], Any]:
        semaphore = await library.RedisSemaphore.create(client, queue_id, count=limit)
        return lambda: semaphore

    return prepare


async def redis_lock(url: str) -> Prepare:
    client = _client(url)

    async def prepare(queue_id: str, limit: int, number: int) -> Callable[[], Any]:
        # A lock has a limit of one: where there are more slots, there are as many locks.
        name = queue_id if limit == 1 else f"{queue_id}-{number % limit}"
        return lambda: client.lock(name, timeout=120.0)

    return prepare


LIBRARIES = {
    "ours": ours,
    "commit": ours,
    "genesis": genesis,
    "py-redis-semaphore": py_redis_semaphore,
    "self-limiters": self_limiters,
    "redsync": redsync,
    "redis-py Lock": redis_lock,
}


async def free(prepare: Prepare, queue_id: str, tasks: int, count: int, cpu: bool = False) -> float:
    """Microseconds per enter + leave, with a slot free for each of the tasks; of this process's CPU."""
    clock = time.process_time if cpu else time.perf_counter
    made = [await prepare(queue_id, tasks, number) for number in range(tasks)]

    async def call(enter: Callable[[], Any], times: int) -> None:
        for _ in range(times):
            async with enter():
                pass

    await asyncio.gather(*(call(enter, 1) for enter in made))  # makes the connections
    began = clock()
    await asyncio.gather(*(call(enter, count) for enter in made))
    return (clock() - began) / (tasks * count) * 1e6


class Line:
    """One holder and many waiters behind it."""

    def __init__(self, prepare: Prepare, queue_id: str, waiters: int) -> None:
        self._prepare = prepare
        self._queue_id = queue_id
        self._waiters = waiters
        self._left = waiters
        self._go = asyncio.Event()
        self._inside = asyncio.Event()
        self._last: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._began = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    async def gather(self) -> None:
        made = [await self._prepare(self._queue_id, 1, number) for number in range(self._waiters + 1)]
        self._tasks = [asyncio.create_task(self._first(made[0]))]
        await asyncio.wait(
            {asyncio.ensure_future(self._inside.wait()), self._tasks[0]},
            return_when=asyncio.FIRST_COMPLETED,
        )
        self._tasks += [asyncio.create_task(self._call(enter)) for enter in made[1:]]
        await asyncio.sleep(SETTLE)
        self._raise_if_failed()

    async def drain(self) -> float:
        """Microseconds per hand-off, from the first release until the last is inside."""
        self._go.set()
        ends: set[asyncio.Future[Any]] = {self._last, *self._tasks}
        await asyncio.wait(ends)
        self._raise_if_failed()
        return (self._last.result() - self._began) / self._waiters * 1e6

    def _raise_if_failed(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()

    async def _first(self, enter: Callable[[], Any]) -> None:
        async with enter():
            self._inside.set()
            await self._go.wait()
            self._began = time.perf_counter()

    async def _call(self, enter: Callable[[], Any]) -> None:
        try:
            async with enter():
                self._left -= 1
                if not self._left:
                    self._last.set_result(time.perf_counter())
        except Exception as error:
            if not self._last.done():
                self._last.set_exception(error)
            raise


class Crowd:
    """The waiters of one process in a line of one slot that several processes share."""

    def __init__(self, prepare: Prepare, queue_id: str, waiters: int, hold: float) -> None:
        self._prepare = prepare
        self._queue_id = queue_id
        self._waiters = waiters
        self._hold = hold
        self._go = asyncio.Event()
        self._inside: list[float] = []  # when a waiter came in, and when it went
        self._holder: asyncio.Task[float] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def hold(self) -> float:
        """Take the slot in front of everybody, until `go`."""
        enter = await self._prepare(self._queue_id, 1, 0)
        inside = asyncio.Event()

        async def first() -> float:
            async with enter():
                inside.set()
                await self._go.wait()
                return time.monotonic()

        self._holder = asyncio.create_task(first())
        await inside.wait()
        return 0.0

    async def gather(self) -> float:
        made = [await self._prepare(self._queue_id, 1, 1 + n) for n in range(self._waiters)]
        self._tasks = [asyncio.create_task(self._call(enter)) for enter in made]
        await asyncio.sleep(SETTLE)
        return 0.0

    async def drain(self) -> list[float]:
        """When the first one went (0 if it was in another process), when the last came in, and how long
        this process's waiters were inside."""
        self._go.set()
        await asyncio.gather(*self._tasks)
        began = 0.0 if self._holder is None else await self._holder
        return [began, max(self._inside[::2]), sum(self._inside[1::2]) - sum(self._inside[::2])]

    async def _call(self, enter: Callable[[], Any]) -> None:
        async with enter():
            came = time.monotonic()
            if self._hold:
                await asyncio.sleep(self._hold)
            self._inside += (came, time.monotonic())


class Driver:
    """Answers the commands."""

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare
        self._crowd: Crowd | None = None

    async def answer(self, row: str, queue: str, **numbers: Any) -> float | list[float]:
        if row == "free":
            return await free(self._prepare, queue, **numbers)
        if row == "crowd":
            self._crowd = Crowd(self._prepare, queue, **numbers)
            return 0.0
        if row in ("hold", "gather", "drain"):
            assert self._crowd is not None
            figure: float | list[float] = await getattr(self._crowd, row)()
            return figure
        line = Line(self._prepare, queue, **numbers)
        await line.gather()
        if row == "hand-off":
            return await line.drain()
        # "connections": who asks looks at the server meanwhile, and then ends this process
        return 0.0


async def main(library: str, url: str) -> None:
    name = library if library in LIBRARIES else library.rpartition(" ")[0]  # without its version
    driver = Driver(await LIBRARIES[name](url))
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        try:
            said: dict[str, Any] = {"figure": await driver.answer(**json.loads(line))}
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}"[:120]}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    if sys.argv[3] == "uvloop":
        importlib.import_module("uvloop").install()
    asyncio.run(main(*sys.argv[1:3]))
