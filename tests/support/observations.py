"""Readers of a test's sinks, and calls that end with each outcome."""

from __future__ import annotations

import asyncio
from typing import Any, get_args

from prometheus_client import CollectorRegistry

from genesis import Queue, QueueTimeoutError
from genesis.backends.protocol import EnterRequest, EnterResult, QueueBackend
from genesis.exceptions import BackendUnavailableError, EvictedError
from genesis.observability import Telemetry, names
from tests.support.waiting import wait_until

WAIT_OUTCOMES = get_args(names.WaitOutcome)


def operations(registry: CollectorRegistry, operation: str, outcome: str = "ok") -> float | None:
    labels = {"backend": "memory", "operation": operation, "outcome": outcome}
    return registry.get_sample_value("genesis_backend_operation_seconds_count", labels)


def waits(registry: CollectorRegistry, queue: str = "sales") -> dict[str, float]:
    """The non-zero counts of wait observations, by outcome."""
    name = "genesis_queue_wait_seconds_count"
    found = {o: registry.get_sample_value(name, {"queue": queue, "outcome": o}) for o in WAIT_OUTCOMES}
    return {outcome: count for outcome, count in found.items() if count}


def holds(registry: CollectorRegistry, queue: str = "sales") -> dict[str, float]:
    name = "genesis_queue_hold_seconds_count"
    outcomes = get_args(names.HoldOutcome)
    found = {o: registry.get_sample_value(name, {"queue": queue, "outcome": o}) for o in outcomes}
    return {outcome: count for outcome, count in found.items() if count}


def gauges(registry: CollectorRegistry, queue: str = "sales") -> tuple[float | None, float | None]:
    labels = {"queue": queue}
    return (
        registry.get_sample_value("genesis_queue_waiting", labels),
        registry.get_sample_value("genesis_queue_holding", labels),
    )


def of(span: Any) -> dict[str, Any]:
    """The span's attributes."""
    return dict(span.attributes)


def caller(telemetry: Telemetry) -> Any:
    """A caller's span, current within `with`."""
    assert telemetry.tracer_provider is not None
    return telemetry.tracer_provider.get_tracer("the caller's").start_as_current_span("caller")


def errors(registry: CollectorRegistry, sink: str) -> float:
    return registry.get_sample_value("genesis_telemetry_errors_total", {"sink": sink}) or 0


async def enter(backend: QueueBackend, item_id: str = "call-1") -> EnterResult:
    return await backend.enter(EnterRequest("sales", item_id, 1))


async def end_as(queue: Queue, outcome: str) -> None:
    """Make one call in the queue `sales` whose wait ends with this outcome."""

    async def call(timeout: float | None = None) -> None:
        async with queue.slot("sales", item_id="secret-item", max_concurrent=1, timeout=timeout):
            pass

    if outcome == "granted":
        await call()
        return
    await queue.set_limit("sales", 0)
    task = asyncio.create_task(call(0.001 if outcome == "timeout" else None))
    if outcome == "refused":
        task.cancel()
        await asyncio.wait({task})
        task = asyncio.create_task(call(0))
    elif outcome != "timeout":
        await wait_until(lambda: queue.position("sales", "secret-item"), "it waits")
    if outcome == "cancelled":
        task.cancel()
    elif outcome == "evicted":
        await queue.evict("sales", "secret-item")
    elif outcome == "error":
        await queue.close()
    await asyncio.wait({task})
    kinds = {"evicted": EvictedError, "error": BackendUnavailableError}
    if outcome == "cancelled":
        assert task.cancelled()
    else:
        assert isinstance(task.exception(), kinds.get(outcome, QueueTimeoutError))
    if outcome != "error":
        await queue.set_limit("sales", None)
