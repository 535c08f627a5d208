"""Each operation of the protocol has its sample, its span and its log event."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, get_args

import pytest
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry

from genesis.backends.protocol import (
    Disrupted,
    Heartbeat,
    LimitDisagreement,
    OverrideChanged,
    QueueBackend,
    Reclaimed,
    Recovered,
)
from genesis.exceptions import BackendUnavailableError, EvictedError
from genesis.observability import Telemetry, names
from genesis.observability.layer import ObservedBackend
from genesis.queue import InMemoryBackend
from tests.conftest import Spans
from tests.support.observations import caller, enter, of, operations
from tests.support.waiting import quiesce


async def send_wait(backend: QueueBackend) -> None:
    holder, waiter = await enter(backend, "holder"), await enter(backend)
    waiting = asyncio.create_task(backend.wait(waiter.ticket, 60))
    await quiesce()
    await backend.set_limit("sales", 2)
    await waiting
    for admission in (holder, waiter):
        backend.leave(admission.ticket)


async def send_leave(backend: QueueBackend) -> None:
    backend.leave((await enter(backend)).ticket)


# operation -> what sends it once, its span and its log event
SENT: dict[str, tuple[Callable[[QueueBackend], Any], str, str]] = {
    "enter": (enter, "queue.enqueue", "enqueued"),
    "wait": (send_wait, "queue.wait", "granted"),
    "leave": (send_leave, "queue.release", "released"),
    "set_limit": (lambda b: b.set_limit("sales", 3), "queue.set_limit", "limit_changed"),
    "stats": (lambda b: b.stats("sales"), "queue.stats", "inspected"),
    "wait_status": (
        lambda b: b.wait_status("sales", ["call-1"]),
        "queue.wait_status",
        "inspected",
    ),
    "flush": (lambda b: b.flush(), "queue.flush", "inspected"),
    "entries": (lambda b: b.entries("sales"), "queue.entries", "inspected"),
    "evict": (lambda b: b.evict("sales", "call-1"), "queue.evict", "evicted"),
    "ping": (lambda b: b.ping(), "queue.ping", "inspected"),
    "close": (lambda b: b.close(), "queue.close", "closed"),
}


def test_every_operation_of_the_protocol_is_sent_below() -> None:
    """The table of the next test leaves out no operation of the protocol."""
    protocol = {n for n, m in vars(QueueBackend).items() if inspect.isfunction(m) and n[0] != "_"}
    assert set(SENT) == protocol - {"listen", "lapsed"} == set(get_args(names.Operation))


@pytest.mark.parametrize("operation", get_args(names.Operation))
async def test_each_operation_has_its_sample_its_span_and_its_log_event(
    observed: ObservedBackend,
    registry: CollectorRegistry,
    telemetry: Telemetry,
    spans: Spans,
    events: Callable[[], list[str]],
    operation: str,
) -> None:
    """One sample in the operation histogram, with outcome ok; one span in a trace; one event."""
    send, span, event = SENT[operation]
    if operation == "evict":
        await enter(observed)  # a call to evict
    with caller(telemetry):
        if inspect.isawaitable(sending := send(observed)):
            await sending
    await quiesce()
    assert operations(registry, operation) == 1
    found = [s.name for s in spans.get_finished_spans()].count(span)
    assert found == (0 if operation == "ping" else 1)
    assert event in events()


@pytest.mark.parametrize("operation", ["set_limit", "stats", "wait_status", "entries", "ping", "close"])
async def test_no_inspection_begins_a_trace(
    observed: ObservedBackend, spans: Spans, operation: str
) -> None:
    """A probe every few seconds would fill every search for traces."""
    await SENT[operation][0](observed)
    assert spans.get_finished_spans() == ()


@pytest.mark.parametrize(
    "operation", sorted(set(get_args(names.Operation)) - {"leave", "flush", "close", "wait"})
)
async def test_each_operation_that_fails_is_counted_as_unavailable(
    observed: ObservedBackend,
    registry: CollectorRegistry,
    telemetry: Telemetry,
    spans: Spans,
    operation: str,
) -> None:
    """The error passes through; the sample and the span have it as their outcome."""
    await observed.close()
    with caller(telemetry), pytest.raises(BackendUnavailableError):
        await SENT[operation][0](observed)
    assert operations(registry, operation, "unavailable") == 1
    assert operations(registry, operation) is None
    failed = [s for s in spans.get_finished_spans() if s.status.status_code is StatusCode.ERROR]
    assert bool(failed) == (operation != "ping")
    assert {of(s)["error.type"] for s in failed} <= {"BackendUnavailableError"}


async def test_the_outcomes_of_a_wait_are_distinguished(
    observed: ObservedBackend, registry: CollectorRegistry
) -> None:
    """timeout, cancelled, evicted, unavailable and ok each count as what they are."""
    await enter(observed, "holder")
    with pytest.raises(TimeoutError):
        await observed.wait((await enter(observed)).ticket, 0.001)
    cancelled = asyncio.create_task(observed.wait((await enter(observed)).ticket, None))
    await quiesce()
    cancelled.cancel()
    await asyncio.wait({cancelled})
    assert cancelled.cancelled()
    evicted = asyncio.create_task(observed.wait((await enter(observed, "victim")).ticket, None))
    closed = asyncio.create_task(observed.wait((await enter(observed, "late")).ticket, None))
    await quiesce()
    await observed.evict("sales", "victim")
    await observed.close()
    with pytest.raises(EvictedError):
        await evicted
    with pytest.raises(BackendUnavailableError):
        await closed
    for outcome in ("timeout", "cancelled", "evicted", "unavailable"):
        assert operations(registry, "wait", outcome) == 1, outcome


async def test_what_a_backend_reports_is_counted_and_logged(
    observed: ObservedBackend,
    inner: InMemoryBackend,
    registry: CollectorRegistry,
    events: Callable[[], list[str]],
) -> None:
    """Heartbeats, reclaims, disagreements and disruptions have their metric and their event."""
    received: list[Any] = []
    observed.listen(received.append)
    emitted = [
        Heartbeat(0.01, "ok"),
        Reclaimed("sales", "call-1", "dead-1", "holding"),
        LimitDisagreement("sales", 2, 3),
        OverrideChanged("sales", None),
        Disrupted("connection", "refused"),
        Recovered(1.5),
    ]
    for event in emitted:
        inner._emit(event)  # type: ignore[arg-type]
    assert received == emitted
    assert operations(registry, "heartbeat") == 1
    value = registry.get_sample_value
    assert value("genesis_queue_reclaimed_total", {"queue": "sales", "state": "holding"}) == 1
    assert value("genesis_queue_limit_disagreements_total", {"queue": "sales"}) == 1
    reason = {"backend": "memory", "reason": "connection"}
    assert value("genesis_backend_disruptions_total", reason) == 1
    changed = ["limit_changed", "limit_changed"]
    assert events() == ["reclaimed", *changed, "backend_unavailable", "backend_recovered"]
    assert value("genesis_build_info", {"version": "1.2.3", "backend": "memory"}) == 1
