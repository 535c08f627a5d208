"""Instances and worker processes on one Redis server, and their calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.exceptions import BackendUnavailableError, QueueTimeoutError
from genesis.observability import Telemetry
from genesis.queue import RedisBackend
from genesis.queue.slot import Slot
from tests.conftest import LEASE, assert_nothing_kept
from tests.support.redis_server import RedisServer
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import wait_until
from tests.support.worker import Worker

__all__ = [
    "AT_ONCE", "BEAT", "IN_TIME", "SALES", "Call", "Fleet", "LoopWatch", "leave_as_granted", "renewed",
    "seconds", "works_again",
]  # fmt: skip

BEAT = LEASE / 3
AT_ONCE = 0.8  # seconds for what waits for nothing, on a busy machine; `close` may wait for 1 s
IN_TIME = LEASE + 1.5  # seconds after a death within which the next live waiter must hold
SALES = "sales"


class Call:
    """One call in this process: it enters, holds until `leave`, and leaves."""

    def __init__(self, queue: Queue, item: str, queue_id: str, options: dict[str, Any]) -> None:
        self.item = item
        self.slot: Slot | None = None
        self.token = 0
        self._go = asyncio.Event()
        self.task = asyncio.create_task(self._run(queue.slot(queue_id, item_id=item, **options)))

    @property
    def holds(self) -> bool:
        return self.slot is not None and not self.task.done()

    @property
    def lost(self) -> bool:
        return self.slot is not None and self.slot.lost

    async def held(self, timeout: float = 20.0) -> float:
        """Wait until it holds. Returns the seconds that took."""
        return await wait_until(self._granted, f"{self.item} holds", timeout)

    async def leave(self) -> None:
        self._go.set()
        await self.task

    async def failure(self, timeout: float = 20.0) -> BaseException:
        """Wait until it has failed. Returns the error."""
        await wait_until(self.task.done, f"{self.item} has failed", timeout)
        error = self.task.exception()
        assert error is not None, f"{self.item} did not fail"
        return error

    async def ended(self) -> BaseException | None:
        """Let it leave. Returns its error, if any."""
        self._go.set()
        (error,) = await asyncio.gather(self.task, return_exceptions=True)
        return error

    def _granted(self) -> bool:
        if self.task.done() and not self.task.cancelled() and (error := self.task.exception()):
            raise AssertionError(f"{self.item} failed: {error!r}") from error
        return self.slot is not None

    async def _run(self, request: Any) -> None:
        async with request as self.slot:
            assert self.slot is not None
            self.token = self.slot.fencing_token
            await self._go.wait()


async def leave_as_granted(calls: Iterable[Call]) -> None:
    """Let every call leave as soon as it holds, in any order."""
    rest = list(calls)

    async def step() -> bool:
        for call in rest:
            if call.holds:
                await call.leave()
        return all(call.task.done() for call in rest)

    await wait_until(step, "all calls have had their turn")


class Fleet:
    """Instances and workers on one server, and a check of the state after a test."""

    def __init__(self, server: RedisServer, stack: AsyncExitStack) -> None:
        self.server = server
        self._stack = stack
        self.queues: list[Queue] = []
        self.registry = CollectorRegistry()

    def queue(self, url: str = "", **options: Any) -> Queue:
        """An instance."""
        backend = RedisBackend(url or self.server.url, **{"lease": LEASE, **options})
        queue = Queue(backend, telemetry=Telemetry(registry=self.registry))
        self.queues.append(queue)
        return queue

    def call(
        self, queue: Queue, item: str, limit: int | None = 1, *, queue_id: str = SALES, **options: Any
    ) -> Call:
        return Call(queue, item, queue_id, {"max_concurrent": limit, **options})

    async def waiting(self, queue: Queue, *items: str) -> list[Call]:
        """Calls that wait, and have entered in this order."""
        calls = []
        for item in items:
            calls.append(self.call(queue, item))
            await self.waits(queue, item)
        return calls

    async def waits(self, queue: Queue, item: str) -> None:
        async def does() -> bool:
            return await queue.position(SALES, item) is not None

        await wait_until(does, f"{item} waits")

    async def worker(self) -> Worker:
        return await self._stack.enter_async_context(Worker(self.server.url, LEASE, SALES))

    async def proxy(self, server: RedisServer | None = None) -> TcpProxy:
        return await self._stack.enter_async_context(TcpProxy((server or self.server).port))

    async def order(self, queue: Queue) -> list[str]:
        return [e.item_id for e in await queue.entries(SALES) if e.state == "waiting"]

    async def holders(self, queue: Queue) -> list[str]:
        return [e.item_id for e in await queue.entries(SALES) if e.state == "holding"]

    def add_user(self) -> str:
        """Create a user `worker` with all rights. Returns the url with its password."""
        rules = ["reset", "on", ">secret", "~*", "&*", "+@all"]
        self._acl("SETUSER", "worker", *rules)
        return self.server.url.replace("//", "//worker:secret@")

    def allow(self, rule: str) -> None:
        """Change the rights of the user `worker`, e.g. `-evalsha`."""
        self._acl("SETUSER", "worker", rule)

    def _acl(self, *words: str) -> None:
        client: Any = self.server.client
        client.execute_command("ACL", *words)

    def counted(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    def disruptions(self) -> dict[str, float]:
        """Counted disruptions by reason."""
        return {
            sample.labels["reason"]: sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == "genesis_backend_disruptions_total" and sample.value
        }

    async def settled(self, limit: int = 1) -> None:
        """Check that no call and no key is left, and that the full limit is available."""
        for queue in self.queues:
            await assert_nothing_kept(queue)
        fresh = self.queue(lease=30.0)

        async def nobody() -> bool:
            return (await fresh.stats(SALES))[:2] == (0, 0)

        await wait_until(nobody, "nobody waits or holds")
        calls = [self.call(fresh, f"last-{n}", limit, timeout=5) for n in range(limit)]
        for call in calls:
            await call.held()
        with pytest.raises(QueueTimeoutError):
            await self.call(fresh, "one-too-many", limit, timeout=0).task
        for call in calls:
            await call.leave()
        for queue in self.queues:
            await assert_nothing_kept(queue)
        left = [key for key in self.server.keys_without_expiry() if not key.endswith(":override")]
        assert left == []


async def renewed(queue: Queue, queue_id: str = SALES) -> None:
    """Return right after a lease of `queue` was renewed."""
    backend: Any = queue._backend
    core = backend._inner._driver.queues[queue_id]
    before = core.renewed
    await wait_until(lambda: core.renewed > before, "the lease is renewed")


async def seconds(call: Any) -> tuple[float, BaseException | None]:
    """The seconds that an awaitable took, and its error."""
    began = time.monotonic()
    result: Any = (await asyncio.gather(call, return_exceptions=True))[0]
    error = result if isinstance(result, BaseException) else None
    return time.monotonic() - began, error


class LoopWatch:
    """Measures the longest stall of the event loop while its block runs.

    Attributes:
        longest: seconds between two iterations of the loop.
    """

    def __init__(self) -> None:
        self.longest = 0.0

    async def __aenter__(self) -> LoopWatch:
        self._last = time.perf_counter()
        self._task = asyncio.create_task(self._run())
        await asyncio.sleep(0)
        self.longest = 0.0
        return self

    async def __aexit__(self, *_: object) -> None:
        self._look()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(0)

    def _look(self) -> None:
        now = time.perf_counter()
        self.longest = max(self.longest, now - self._last)
        self._last = now


async def works_again(fleet: Fleet, queue: Queue) -> float:
    """Wait until calls of `queue` get slots. Returns the seconds that took."""

    async def works() -> bool:
        return not isinstance(await fleet.call(queue, "works").ended(), BackendUnavailableError)

    return await wait_until(works, "calls get slots again")
