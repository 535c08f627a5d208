"""The histograms, counters and gauges of waits, holds and refusals."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from typing import get_args

import pytest
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.backends.protocol import EnterRequest, EnterResult
from genesis.exceptions import BackendUnavailableError
from genesis.observability import Telemetry, metrics, names
from genesis.observability.layer import ObservedBackend
from genesis.queue import InMemoryBackend
from tests.conftest import Spans
from tests.support.observations import WAIT_OUTCOMES, end_as, enter, gauges, holds, of, waits
from tests.support.sick import SickError, fail
from tests.support.waiting import quiesce


@pytest.mark.parametrize("outcome", [*WAIT_OUTCOMES, "refused"])
async def test_each_item_has_exactly_one_wait_observation(
    queue: Queue, registry: CollectorRegistry, outcome: str
) -> None:
    """However the wait ends, it is observed once, with its outcome, and the gauges are back at 0."""
    await end_as(queue, outcome)
    assert waits(registry) == ({} if outcome == "refused" else {outcome: 1})
    assert holds(registry) == ({"released": 1} if outcome == "granted" else {})
    assert gauges(registry) == (0, 0)
    enqueued = registry.get_sample_value("genesis_queue_position_at_enqueue_count", {"queue": "sales"})
    assert enqueued == (0 if outcome == "refused" else 1)


def refusals(registry: CollectorRegistry, queue: str = "sales") -> dict[str, float | None]:
    name = "genesis_queue_refused_total"
    reasons = get_args(names.RefusalReason)
    return {r: registry.get_sample_value(name, {"queue": queue, "reason": r}) for r in reasons}


async def test_a_refusal_is_counted_with_its_reason_and_is_no_wait(
    observed: ObservedBackend,
    registry: CollectorRegistry,
    spans: Spans,
    events: Callable[[], list[str]],
) -> None:
    """busy, full and draining each have a counter, an event and an outcome that is not an error."""
    await enter(observed, "holder")
    for timeout in (0.0, None):
        entry = EnterRequest("sales", "refused", max_waiting=0, timeout=timeout)
        assert (await observed.enter(entry))[1:3] == (None, 0)
    observed.refused(EnterRequest("sales", "refused"), "draining")
    assert refusals(registry) == {"full": 1, "busy": 1, "draining": 1}
    assert waits(registry) == {"granted": 1}
    assert gauges(registry) == (0, 1)
    assert events() == ["enqueued", "granted", "refused", "refused", "refused"]
    turned_away = [s for s in spans.named("acquire") if of(s)["genesis.item_id"] == "refused"]
    assert [of(s)["genesis.outcome"] for s in turned_away] == ["busy", "full", "draining"]
    assert not any(s.status.status_code is StatusCode.ERROR for s in spans.get_finished_spans())


async def test_a_wait_cancelled_after_its_grant_is_observed_once(
    queue: Queue, registry: CollectorRegistry
) -> None:
    """Cancelled between its grant and its wake-up: one observation, `cancelled`, and no hold."""

    async def call() -> None:
        async with queue.slot("sales"):
            pytest.fail("was cancelled before")

    async with queue.slot("sales"):
        task = asyncio.create_task(call())
        await quiesce()
    task.cancel()  # it has been granted the slot
    await asyncio.wait({task})
    assert waits(registry) == {"granted": 1, "cancelled": 1}
    assert holds(registry) == {"released": 1}
    assert gauges(registry) == (0, 0)


async def test_an_error_while_entering_is_observed_once(
    inner: InMemoryBackend, telemetry: Telemetry, registry: CollectorRegistry
) -> None:
    """The backend fails before there is a ticket: one wait observation, error."""
    queue = Queue(inner, telemetry=telemetry)
    await queue.close()
    with pytest.raises(BackendUnavailableError):
        async with queue.slot("sales"):
            pytest.fail("entered")
    assert waits(registry) == {"error": 1}
    assert gauges(registry) == (0, 0)


class Unprintable(Exception):  # noqa: N818
    """An error that another backend might raise."""

    def __str__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize("error", [TimeoutError("of the socket"), Unprintable()])
async def test_whatever_entering_raises_reaches_the_caller_and_counts_as_an_error(
    inner: InMemoryBackend,
    telemetry: Telemetry,
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """A timeout of the backend is not the caller's; formatting an error might fail."""

    async def broken(entry: EnterRequest) -> EnterResult:
        raise error

    monkeypatch.setattr(inner, "enter", broken)
    with pytest.raises(type(error)) as raised:
        await end_as(Queue(inner, telemetry=telemetry), "granted")
    assert raised.value is error
    assert waits(registry) == {"error": 1}
    assert gauges(registry) == (0, 0)


async def test_a_backend_that_fails_to_check_the_lease_gets_its_slot_back(
    queue: Queue, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error passes through, and the slot is given back to the next waiter."""
    monkeypatch.setattr(InMemoryBackend, "lapsed", fail)
    with pytest.raises(SickError):
        await end_as(queue, "granted")
    assert gauges(registry) == (0, 0)
    assert holds(registry) == {"released": 1}


async def test_an_immediate_grant_observes_exactly_zero(
    queue: Queue, registry: CollectorRegistry
) -> None:
    """The bucket of 0 counts the calls that did not wait, as the service level needs it."""
    for _ in range(3):
        async with queue.slot("sales") as slot:
            assert slot.waited == 0.0
    labels = {"queue": "sales", "outcome": "granted"}
    assert registry.get_sample_value("genesis_queue_wait_seconds_sum", labels) == 0
    bucket = registry.get_sample_value("genesis_queue_wait_seconds_bucket", {**labels, "le": "0.0"})
    assert bucket == 3


async def test_the_histograms_have_the_wait_of_the_slot(
    registry: CollectorRegistry, spans: Spans
) -> None:
    """slot.waited and both histograms are measured on the clock of the telemetry."""
    now = 100.0
    queue = Queue(telemetry=Telemetry(registry, clock=lambda: now))
    waited = []

    async def call() -> None:
        async with queue.slot("sales") as slot:
            waited.append(slot.waited)

    async with queue.slot("sales"):
        task = asyncio.create_task(call())
        await quiesce()
        now += 7
    now += 0.5
    await task
    await queue.close()
    assert waited == [7.5]
    labels = {"queue": "sales", "outcome": "granted"}
    assert registry.get_sample_value("genesis_queue_wait_seconds_sum", labels) == 7.5
    held = {"queue": "sales", "outcome": "released"}
    assert registry.get_sample_value("genesis_queue_hold_seconds_sum", held) == 7.0


async def test_the_gauges_follow_the_calls(queue: Queue, registry: CollectorRegistry) -> None:
    """genesis_queue_waiting and _holding go up and down with the calls of this process."""
    leave = asyncio.Event()

    async def call() -> None:
        async with queue.slot("sales", max_concurrent=2):
            await leave.wait()

    tasks = [asyncio.create_task(call()) for _ in range(5)]
    await quiesce()
    assert gauges(registry) == (3, 2)
    tasks[4].cancel()
    tasks[0].cancel()
    await quiesce()
    assert gauges(registry) == (1, 2)
    leave.set()
    await asyncio.wait(tasks)
    assert gauges(registry) == (0, 0)
    assert waits(registry) == {"granted": 4, "cancelled": 1}


@pytest.mark.parametrize("outcome", get_args(names.HoldOutcome))
async def test_each_hold_is_observed_once_with_its_outcome(
    queue: Queue, registry: CollectorRegistry, spans: Spans, outcome: str
) -> None:
    """released, error, lost and evicted, in the histogram and on the hold span."""
    try:
        async with queue.slot("sales", item_id="call-1"):
            if outcome == "error":
                raise ZeroDivisionError("the body's own")
            if outcome == "evicted":
                await queue.evict("sales", "call-1")
            if outcome == "lost":
                await queue.close()
    except ZeroDivisionError:
        pass
    assert holds(registry) == {outcome: 1}
    (hold,) = spans.named("hold")
    assert of(hold)["genesis.outcome"] == outcome
    assert (hold.status.status_code is StatusCode.ERROR) == (outcome != "released")
    assert gauges(registry) == (0, 0)


async def test_a_cancelled_body_is_a_release(queue: Queue, registry: CollectorRegistry) -> None:
    """Cancelling a call while it holds its slot is a normal end, not a failure."""

    async def call() -> None:
        async with queue.slot("sales"):
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await quiesce()
    task.cancel()
    await asyncio.wait({task})
    assert holds(registry) == {"released": 1}


async def test_the_item_id_is_never_a_label(telemetry: Telemetry, registry: CollectorRegistry) -> None:
    """Nor is it in an exemplar, which has only trace_id and span_id."""
    exemplars = 0
    for outcome in WAIT_OUTCOMES:
        await end_as(Queue(telemetry=telemetry), outcome)
    for metric in registry.collect():
        for sample in metric.samples:
            assert "secret-item" not in sample.name
            assert not any("secret-item" in value for value in sample.labels.values())
            assert not any("item" in label for label in sample.labels)
            if sample.exemplar is not None:
                exemplars += 1
                assert set(sample.exemplar.labels) == {"trace_id", "span_id"}
    assert exemplars


async def test_two_queues_and_a_reload_share_a_registry(registry: CollectorRegistry) -> None:
    """Instruments are created once a registry, without "Duplicated timeseries", and count together."""
    queues = [Queue(telemetry=Telemetry(registry)) for _ in range(2)]
    for queue in queues:
        async with queue.slot("sales"):
            pass
    assert waits(registry) == {"granted": 2}
    spec = importlib.util.spec_from_file_location("metrics_again", metrics.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kept = module.instruments_of(registry, metrics.WAIT_BUCKETS, lambda: 0.0)
    assert kept is Telemetry(registry).instruments
