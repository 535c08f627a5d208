"""Backends written by a user, and the ownership of a backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.backends.protocol import EnterRequest, EnterResult, Grant, LeaveResult, Ticket
from genesis.observability import Telemetry
from genesis.queue import (
    InMemoryBackend,
)
from tests.conftest import state_of
from tests.support.waiting import wait_until


@pytest.fixture
async def queue(telemetry: Telemetry) -> AsyncIterator[Queue]:
    async with Queue(telemetry=telemetry) as queue:
        yield queue


async def test_instances_have_different_names() -> None:
    """instance_id distinguishes two Queues of one process, and is in their entries."""
    first, second = (Queue(telemetry=Telemetry(CollectorRegistry())) for _ in range(2))
    assert first.instance_id != second.instance_id
    async with first.slot("sales"):
        (entry,) = await first.entries("sales")
    assert entry.instance_id == first.instance_id


class Own(InMemoryBackend):
    """A user's backend: its calls are recorded, and it fails on demand."""

    name = "own"

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []
        self.failure: Exception | None = None

    async def enter(self, entry: EnterRequest) -> EnterResult:
        self.called.append("enter")
        if self.failure is not None:
            raise self.failure
        return await super().enter(entry)

    async def wait(self, ticket: Ticket, timeout: float | None) -> Grant:
        self.called.append("wait")
        return await super().wait(ticket, timeout)

    def leave(self, ticket: Ticket, context: str = "", keep_place: float = 0.0) -> LeaveResult:
        self.called.append("leave")
        return super().leave(ticket, context, keep_place)


async def test_a_users_own_backend_is_used_and_observed(
    telemetry: Telemetry, registry: CollectorRegistry
) -> None:
    """Any QueueBackend works, and its name labels its operations in the metrics."""
    backend = Own()
    async with Queue(backend, telemetry=telemetry) as queue, queue.slot("sales"):
        waiter = asyncio.create_task(queue.slot("sales").__aenter__())
        await wait_until(lambda: "wait" in backend.called, "it waits")
        waiter.cancel()
        await asyncio.wait({waiter})
    assert backend.called == ["enter", "enter", "wait", "leave", "leave"]
    labels = {"backend": "own", "operation": "enter", "outcome": "ok"}
    assert registry.get_sample_value("genesis_backend_operation_seconds_count", labels) == 2


async def test_an_error_of_a_users_backend_reaches_the_call_as_it_is(
    telemetry: Telemetry, registry: CollectorRegistry
) -> None:
    """It is counted, and the failed call leaves nothing behind."""
    backend = Own()
    backend.failure = ZeroDivisionError("its own")
    async with Queue(backend, telemetry=telemetry) as queue:
        with pytest.raises(ZeroDivisionError) as caught:
            async with queue.slot("sales", max_concurrent=3):
                pytest.fail("entered")
        assert caught.value is backend.failure
        assert not state_of(queue)
        backend.failure = None
        async with queue.slot("sales", max_concurrent=4):
            pass
    labels = {"backend": "own", "operation": "enter", "outcome": "error"}
    assert registry.get_sample_value("genesis_backend_operation_seconds_count", labels) == 1


async def test_a_backend_belongs_to_one_queue(telemetry: Telemetry) -> None:
    """A second Queue on the same object raises on creation; the first one continues to work."""
    backend = InMemoryBackend()
    async with Queue(backend, telemetry=telemetry) as queue:
        with pytest.raises(RuntimeError, match="belongs to a Queue"):
            Queue(backend, telemetry=Telemetry(CollectorRegistry()))
        async with queue.slot("sales"):
            pass
