"""The observing layer: complete, truthful, and never in the way of a call."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, SamplingResult
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry

import genesis
from genesis import Queue, QueueTimeoutError
from genesis.backends.protocol import (
    BackendEvent,
    Disrupted,
    EnterRequest,
    EnterResult,
    Grant,
    Heartbeat,
    LeaveResult,
    Left,
    LimitDisagreement,
    QueueBackend,
    Reclaimed,
    Recovered,
    SlotLost,
    Ticket,
)
from genesis.exceptions import BackendUnavailableError, EvictedError, QueueDrainingError
from genesis.observability import Telemetry, layer, metrics, names
from genesis.observability.layer import ObservedBackend
from genesis.queue import InMemoryBackend
from tests.conftest import Spans, state_of
from tests.sick import SICK, SickError, fail
from tests.waiting import quiesce, wait_until

WAIT_OUTCOMES = get_args(names.WaitOutcome)


@pytest.fixture
def inner() -> InMemoryBackend:
    return InMemoryBackend()


@pytest.fixture
def observed(inner: InMemoryBackend, telemetry: Telemetry) -> ObservedBackend:
    return ObservedBackend(inner, telemetry, "1.2.3")


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The names of the log events so far."""
    caplog.set_level(logging.DEBUG, "genesis.tests")
    return lambda: [record.__dict__["event"] for record in caplog.records if "event" in record.__dict__]


def operations(registry: CollectorRegistry, operation: str, outcome: str = "ok") -> float | None:
    labels = {"backend": "memory", "operation": operation, "outcome": outcome}
    return registry.get_sample_value("genesis_backend_operation_seconds_count", labels)


def waits(registry: CollectorRegistry, queue: str = "sales") -> dict[str, float]:
    """Wait observations by outcome, those that are not 0."""
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
    """The span of whoever calls, current while it is entered."""
    assert telemetry.tracer_provider is not None
    return telemetry.tracer_provider.get_tracer("the caller's").start_as_current_span("caller")


def errors(registry: CollectorRegistry, sink: str) -> float:
    return registry.get_sample_value("genesis_telemetry_errors_total", {"sink": sink}) or 0


# --- complete --------------------------------------------------------------------------------------


async def enter(
    backend: QueueBackend, item_id: str = "call-1", *, only_if_free: bool = False
) -> EnterResult:
    return await backend.enter(EnterRequest("sales", item_id, 1, only_if_free))


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


# operation -> what sends it through once, the span and the log event that tell of it
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
        await enter(observed)  # somebody to evict
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
    """A probe every few seconds would fill the first page of every search."""
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
    """The error passes through; the sample and the span tell of it."""
    await observed.close()
    with caller(telemetry), pytest.raises(BackendUnavailableError):
        await SENT[operation][0](observed)
    assert operations(registry, operation, "unavailable") == 1
    assert operations(registry, operation) is None
    failed = [s for s in spans.get_finished_spans() if s.status.status_code is StatusCode.ERROR]
    assert bool(failed) == (operation != "ping")
    assert {of(s)["error.type"] for s in failed} <= {"BackendUnavailableError"}


async def test_the_outcomes_of_a_wait_are_told_apart(
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
    heard: list[Any] = []
    observed.listen(heard.append)
    told = [
        Heartbeat(0.01, "ok"),
        Reclaimed("sales", "call-1", "dead-1", "holding"),
        LimitDisagreement("sales", 2, 3),
        Disrupted("connection", "refused"),
        Recovered(1.5),
    ]
    for event in told:
        inner._emit(event)  # type: ignore[arg-type]
    assert heard == told
    assert operations(registry, "heartbeat") == 1
    value = registry.get_sample_value
    assert value("genesis_queue_reclaimed_total", {"queue": "sales", "state": "holding"}) == 1
    assert value("genesis_queue_limit_disagreements_total", {"queue": "sales"}) == 1
    reason = {"backend": "memory", "reason": "connection"}
    assert value("genesis_backend_disruptions_total", reason) == 1
    assert events() == ["reclaimed", "limit_changed", "backend_unavailable", "backend_recovered"]
    assert value("genesis_build_info", {"version": "1.2.3", "backend": "memory"}) == 1


def import_layer_again() -> None:
    """Run the module once more under another name, as an import would."""
    spec = importlib.util.spec_from_file_location("layer_again", layer.__file__)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


async def pause(self: Any, queue_id: str) -> None:
    """An operation that the layer does not know."""


def test_a_layer_that_misses_an_operation_is_refused_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """A protocol with one operation more, and the import fails with the operation's name."""
    import_layer_again()
    monkeypatch.setattr(QueueBackend, "pause", pause, raising=False)
    with pytest.raises(TypeError, match=r"does not wrap: pause"):
        import_layer_again()


def test_a_wrapper_that_was_removed_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check looks at the layer's own methods, one by one."""
    for operation in get_args(names.Operation):
        with monkeypatch.context() as patch:
            patch.delattr(ObservedBackend, operation)
            with pytest.raises(TypeError, match=f"does not wrap: {operation}"):
                layer._check_complete()


def test_an_operation_without_a_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrapped, but unknown to names.Operation, and so to the dashboards: refused as well."""
    monkeypatch.setattr(QueueBackend, "pause", pause, raising=False)
    monkeypatch.setattr(ObservedBackend, "pause", pause, raising=False)
    with pytest.raises(TypeError, match=r"differ in: pause"):
        layer._check_complete()


@pytest.mark.slow
def test_mypy_refuses_a_layer_that_misses_an_operation(tmp_path: Path) -> None:
    """In a copy whose protocol has one operation more, mypy --strict objects to the layer."""
    package = tmp_path / "genesis"
    shutil.copytree(Path(genesis.__file__).parent, package)
    protocol = package / "backends" / "protocol.py"
    assert check_types(tmp_path) == (0, [])  # the copy as it is
    text = protocol.read_text()
    anchor = "    async def ping(self) -> None:\n"
    assert text.count(anchor) == 1
    more = "    async def pause(self, queue_id: str) -> None:\n        raise NotImplementedError\n\n"
    protocol.write_text(text.replace(anchor, more + anchor))
    status, objections = check_types(tmp_path)
    assert status == 1
    assert [line for line in objections if "layer.py" in line and "ObservedBackend" in line]


def check_types(folder: Path) -> tuple[int, list[str]]:
    """mypy --strict on the observing layer of the package in `folder`: exit status, errors."""
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(folder / "cache")]
    command += ["--config-file", "", "-m", "genesis.observability.layer"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110)
    return done.returncode, [line for line in done.stdout.splitlines() if ": error:" in line]


# --- metrics ---------------------------------------------------------------------------------------


@pytest.fixture
def queue(telemetry: Telemetry) -> Iterator[Queue]:
    queue = Queue(telemetry=telemetry)
    yield queue
    assert not state_of(queue)


async def end_as(queue: Queue, outcome: str) -> None:
    """One call in the line `sales`, whose wait ends in the given way."""

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
    """busy, full and draining: a counter each, an event, an outcome that is not an error."""
    await enter(observed, "holder")
    refused = await enter(observed, "refused", only_if_free=True)
    assert refused.refusal == "busy"
    refused = await observed.enter(EnterRequest("sales", "refused", max_waiting=0))
    assert refused.refusal == "full"
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
    """Granted by the backend, cancelled before it woke: one observation, cancelled, and no hold."""

    async def call() -> None:
        async with queue.slot("sales"):
            pytest.fail("was cancelled before")

    async with queue.slot("sales"):
        task = asyncio.create_task(call())
        await quiesce()
    task.cancel()  # the slot is its by now
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


class Unspeakable(Exception):  # noqa: N818
    """What a backend of one's own may raise."""

    def __str__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize("error", [TimeoutError("of the socket"), Unspeakable()])
async def test_whatever_entering_raises_reaches_the_caller_and_counts_as_an_error(
    inner: InMemoryBackend,
    telemetry: Telemetry,
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """A timeout of the backend's own is not the caller's; an error need not have a text."""

    async def broken(entry: EnterRequest) -> EnterResult:
        raise error

    monkeypatch.setattr(inner, "enter", broken)
    with pytest.raises(type(error)) as raised:
        await end_as(Queue(inner, telemetry=telemetry), "granted")
    assert raised.value is error
    assert waits(registry) == {"error": 1}
    assert gauges(registry) == (0, 0)


async def test_a_backend_that_cannot_tell_what_has_lapsed_gets_its_slot_back(
    queue: Queue, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error passes through, and nobody waits for ever for a slot that was never left."""
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


async def test_a_wait_observes_what_the_slot_tells(registry: CollectorRegistry, spans: Spans) -> None:
    """slot.waited, the histogram and the held time are measured on the telemetry's clock."""
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
    """Cancelling a call that talks is how it ends, not a failure."""

    async def call() -> None:
        async with queue.slot("sales"):
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await quiesce()
    task.cancel()
    await asyncio.wait({task})
    assert holds(registry) == {"released": 1}


async def test_the_item_id_is_never_a_label(telemetry: Telemetry, registry: CollectorRegistry) -> None:
    """Nor in an exemplar, which bears trace_id and span_id alone."""
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
    """No "Duplicated timeseries", however often instruments are asked for, and all count together."""
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


# --- traces ----------------------------------------------------------------------------------------


async def test_the_spans_of_a_call_that_waited(
    queue: Queue, telemetry: Telemetry, spans: Spans, inner: InMemoryBackend
) -> None:
    """acquire > enqueue, wait; hold > the body's own; release: all in the caller's trace."""
    assert telemetry.tracer_provider is not None
    tracer = telemetry.tracer_provider.get_tracer("the caller's")

    async def call() -> None:
        with tracer.start_as_current_span("call", context=Context()):
            async with queue.slot("sales", item_id="waiter"):
                with tracer.start_as_current_span("talk"):
                    pass
            with tracer.start_as_current_span("after"):
                pass

    async with queue.slot("sales", item_id="holder"):
        task = asyncio.create_task(call())
        await quiesce()
        assert [of(s)["genesis.item_id"] for s in spans.named("enqueue")] == ["holder", "waiter"]
        assert len(spans.named("wait")) == 0  # it still waits, and is visible already
    await task
    mine = {
        s.name.removeprefix("queue."): s
        for s in spans.get_finished_spans()
        if s.name in ("call", "talk", "after") or of(s)["genesis.item_id"] == "waiter"
    }
    call_span = mine["call"]
    assert {s.context.trace_id for s in mine.values()} == {call_span.context.trace_id}
    parents = {name: s.parent.span_id if s.parent else None for name, s in mine.items()}
    ids = {name: s.context.span_id for name, s in mine.items()}
    assert parents == {
        "call": None,
        "acquire": ids["call"],
        "enqueue": ids["acquire"],
        "wait": ids["acquire"],
        "hold": ids["call"],
        "talk": ids["hold"],
        "release": ids["call"],
        "after": ids["call"],
    }
    kinds = {name: mine[name].kind for name in ("acquire", "enqueue", "wait", "hold", "release")}
    assert kinds == {
        "acquire": SpanKind.INTERNAL,
        "enqueue": SpanKind.PRODUCER,
        "wait": SpanKind.INTERNAL,
        "hold": SpanKind.CONSUMER,
        "release": SpanKind.CLIENT,
    }
    for name in kinds:
        span = mine[name]
        assert of(span)["genesis.item_id"] == "waiter"
        assert of(span)["genesis.queue_id"] == "sales"
        assert of(span)["genesis.instance_id"] == queue.instance_id
        assert of(span)["genesis.backend"] == "memory"
        assert span.status.status_code is not StatusCode.ERROR
    assert of(mine["enqueue"])["genesis.position"] == 1
    assert of(mine["enqueue"])["genesis.depth"] == 1
    assert of(mine["wait"])["genesis.outcome"] == "granted"
    assert of(mine["wait"])["genesis.waited_seconds"] >= 0  # rounded to milliseconds
    assert of(mine["hold"])["genesis.outcome"] == "released"
    assert of(mine["hold"])["genesis.fencing_token"] > 0


async def test_hand_offs_are_linked_both_ways(queue: Queue, spans: Spans) -> None:
    """The waiter's wait links the hold that made room; the holder's release links the waiter."""

    async def call() -> None:
        async with queue.slot("sales", item_id="waiter"):
            pass

    async with queue.slot("sales", item_id="holder"):
        task = asyncio.create_task(call())
        await quiesce()
    await task
    (wait,) = spans.named("wait")
    (released_by,) = wait.links
    hold = next(s for s in spans.named("hold") if of(s)["genesis.item_id"] == "holder")
    assert released_by.context.span_id == hold.context.span_id
    assert released_by.attributes["genesis.link"] == "released_by"
    assert released_by.attributes["genesis.item_id"] == "holder"
    release = next(s for s in spans.named("release") if of(s)["genesis.item_id"] == "holder")
    (granted_to,) = release.links
    assert granted_to.attributes["genesis.link"] == "granted_to"
    assert granted_to.attributes["genesis.item_id"] == "waiter"
    assert granted_to.context.trace_id == wait.context.trace_id


@pytest.mark.parametrize("outcome", WAIT_OUTCOMES)
async def test_no_span_is_left_open(
    queue: Queue, spans: Spans, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    """However a wait ends, as many spans end as began, and the caller's context is its own again."""
    started = 0
    original = queue._backend._tracing.start_span

    def start_span(*args: Any, **options: Any) -> Any:
        nonlocal started
        started += 1
        return original(*args, **options)

    monkeypatch.setattr(queue._backend._tracing, "start_span", start_span)
    await end_as(queue, outcome)
    assert len(spans.get_finished_spans()) == started > 0
    assert trace.get_current_span() is trace.INVALID_SPAN
    (acquire,) = spans.named("acquire")
    assert of(acquire)["genesis.outcome"] == outcome
    failed = outcome in ("timeout", "evicted", "error")
    assert (acquire.status.status_code is StatusCode.ERROR) == failed
    assert ("error.type" in of(acquire)) == failed


class TellsLater(InMemoryBackend):
    """Does not know at once what a `leave` did; `tell` has the `Left` events come."""

    def __init__(self) -> None:
        super().__init__()
        self.owed: list[Left] = []

    def leave(  # type: ignore[override]
        self, ticket: Ticket, context: str = "", keep_place: float = 0.0
    ) -> LeaveResult | None:
        self.owed.append(Left(ticket, super().leave(ticket, context, keep_place), confirmed=True))
        return None

    def tell(self, *, confirmed: bool = True) -> None:
        while self.owed:
            self._emit(self.owed.pop(0)._replace(confirmed=confirmed))


async def test_a_release_is_observed_when_its_reply_comes(
    telemetry: Telemetry, registry: CollectorRegistry, spans: Spans
) -> None:
    """The hold is observed at once, and its span; the release with the `Left` event, with its links."""
    inner = TellsLater()
    queue = Queue(inner, telemetry=telemetry)
    waiting = asyncio.create_task(end_as(queue, "granted"))
    async with queue.slot("sales", item_id="holder"):
        waiting.cancel()
        heir = asyncio.create_task(end_as(queue, "granted"))
        await quiesce()
    await heir
    assert holds(registry) == {"released": 2}
    assert len(spans.named("hold")) == 2
    assert spans.named("release") == []
    assert not operations(registry, "leave")
    inner.tell()
    assert operations(registry, "leave") == 2 + len(inner.owed)
    holder = next(s for s in spans.named("release") if of(s)["genesis.item_id"] == "holder")
    assert [link.attributes["genesis.item_id"] for link in holder.links] == ["secret-item"]
    assert not state_of(queue)


async def test_a_release_without_a_reply_is_unconfirmed(
    telemetry: Telemetry, registry: CollectorRegistry, spans: Spans
) -> None:
    """Its operation and its span are told apart; it is not an error."""
    inner = TellsLater()
    queue = Queue(inner, telemetry=telemetry)
    await end_as(queue, "granted")
    inner.tell(confirmed=False)
    assert operations(registry, "leave", "unconfirmed") == 1
    assert not operations(registry, "leave")
    (release,) = spans.named("release")
    assert of(release)["genesis.outcome"] == "unconfirmed"
    assert release.status.status_code is not StatusCode.ERROR
    inner.tell()
    assert not state_of(queue)


class Watched(InMemoryBackend):
    """Notes what was observed by the time that the slot is given back."""

    def __init__(self, look: Callable[[], Any]) -> None:
        super().__init__()
        self._look = look
        self.seen: list[Any] = []

    def leave(self, ticket: Ticket, context: str = "", keep_place: float = 0.0) -> LeaveResult:
        self.seen.append((self._look(), bool(context)))
        return super().leave(ticket, context, keep_place)


async def test_the_release_is_sent_before_the_hold_is_observed(
    telemetry: Telemetry, registry: CollectorRegistry, spans: Spans
) -> None:
    """Whoever waits for the slot does not wait for telemetry; the context of the hold goes along."""
    inner = Watched(lambda: (holds(registry), len(spans.named("hold"))))
    await end_as(Queue(inner, telemetry=telemetry), "granted")
    assert inner.seen == [(({}, 0), True)]
    assert holds(registry) == {"released": 1}


async def test_a_body_s_own_timeout_is_not_told_as_the_queue_s(queue: Queue, spans: Spans) -> None:
    """`error.type` of a hold names what the body raised; of a wait, what the caller gets for it."""

    async def call() -> None:
        async with queue.slot("sales"):
            with pytest.raises(QueueTimeoutError):
                async with queue.slot("sales", timeout=0.001):
                    pass
            raise TimeoutError("the peer's")

    with pytest.raises(TimeoutError, match="the peer's"):
        await call()
    assert [of(hold)["error.type"] for hold in spans.named("hold")] == ["TimeoutError"]
    assert [of(wait)["error.type"] for wait in spans.named("wait")] == ["QueueTimeoutError"]


def test_a_call_that_outlives_its_loop_ends_its_spans(
    telemetry: Telemetry, registry: CollectorRegistry, spans: Spans
) -> None:
    """A coroutine closed when there is no loop any more gives its slot back, and `hold` ends."""
    queue = Queue(telemetry=telemetry)

    async def hold() -> None:
        async with queue.slot("sales"):
            await never

    loop = asyncio.new_event_loop()
    never = loop.create_future()
    holding = hold()
    loop.run_until_complete(asyncio.wait({task := loop.create_task(holding)}, timeout=0.01))
    loop.close()
    holding.close()
    ended = [span.name for span in spans.get_finished_spans()]
    assert ended[-3:] == ["queue.hold", "queue.release", "queue.slot"]
    assert errors(registry, "traces") == 0
    assert gauges(registry) == (0, 0)
    assert not state_of(queue)
    task._log_destroy_pending = False  # type: ignore[attr-defined]


class SickFor(Sampler):
    """Fails when asked about spans of one kind."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def should_sample(
        self, parent_context: Context | None, trace_id: int, name: str, *args: Any, **options: Any
    ) -> SamplingResult:
        if name == f"queue.{self._kind}":
            raise SickError
        return ALWAYS_ON.should_sample(parent_context, trace_id, name, *args, **options)

    def get_description(self) -> str:
        return self._kind


@pytest.mark.parametrize("kind", ["enqueue", "wait", "hold", "release"])
async def test_a_span_that_cannot_be_made_leaves_no_other_open(
    registry: CollectorRegistry, spans: Spans, kind: str
) -> None:
    """The others of the passage end and are exported, and each exemplar names one that was."""
    provider = TracerProvider(sampler=SickFor(kind), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    queue = Queue(telemetry=Telemetry(registry, provider))
    async with queue.slot("sales"):
        with pytest.raises(QueueTimeoutError):
            async with queue.slot("sales", timeout=0.001):
                pass
    assert len(spans.named("acquire")) == 2
    assert len(spans.named(kind)) == 0
    assert errors(registry, "traces") > 0
    exported = {f"{span.context.span_id:016x}" for span in spans.get_finished_spans()}
    samples = [sample for metric in registry.collect() for sample in metric.samples]
    assert {s.exemplar.labels["span_id"] for s in samples if s.exemplar is not None} <= exported


# --- logs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", WAIT_OUTCOMES)
async def test_each_ending_has_its_event_with_its_fields(
    queue: Queue, caplog: pytest.LogCaptureFixture, outcome: str
) -> None:
    """enqueued, then granted, timeout, cancelled, evicted or error, with ids, trace and the wait."""
    caplog.set_level(logging.DEBUG, "genesis.tests")
    await end_as(queue, outcome)
    records = [r.__dict__ for r in caplog.records]
    mine = [r for r in records if r.get("item_id") == "secret-item" and "trace_id" in r]
    last = "released" if outcome == "granted" else outcome
    expected = ["enqueued", "granted", "released"] if outcome == "granted" else ["enqueued", last]
    assert [r["event"] for r in mine] == expected
    for record in mine:
        assert record["queue_id"] == "sales"
        assert record["instance_id"] == queue.instance_id
        assert len(record["trace_id"]) == 32
        assert len(record["span_id"]) == 16
    assert mine[1]["waited"] >= 0


async def test_what_the_application_has_bound_costs_no_event(
    queue: Queue, caplog: pytest.LogCaptureFixture, registry: CollectorRegistry
) -> None:
    """structlog's context variables may bear names that `logging` keeps for itself."""
    caplog.set_level(logging.INFO, "genesis.tests")
    with structlog.contextvars.bound_contextvars(module="billing", name="Ann", tenant=7):
        await end_as(queue, "granted")
    told = [r.__dict__ for r in caplog.records]
    assert [r["event"] for r in told] == ["enqueued", "granted", "released"]
    assert {(r["module_"], r["name_"], r["tenant"]) for r in told} == {("billing", "Ann", 7)}
    assert errors(registry, "logs") == 0


async def test_what_a_backend_tells_bears_no_call_s_context(
    observed: ObservedBackend, inner: InMemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """A timer set in a call runs in its context; an outage is not that call's for all that."""
    caplog.set_level(logging.INFO, "genesis.tests")
    ticket = (await enter(observed)).ticket
    told: list[BackendEvent] = [
        Disrupted("connection", "refused"),
        Reclaimed("sales", "call-2", "dead-1", "waiting"),
        SlotLost(ticket, "lapsed"),
    ]
    caplog.clear()
    loop = asyncio.get_running_loop()
    with structlog.contextvars.bound_contextvars(caller="call-0"):
        for event in told:
            loop.call_soon(inner._emit, event)
    await quiesce()
    assert [r.__dict__["event"] for r in caplog.records] == ["backend_unavailable", "reclaimed", "lost"]
    assert not any("caller" in r.__dict__ for r in caplog.records)
    observed.leave(ticket)


async def test_a_call_that_a_draining_queue_turns_away_is_counted_and_told(
    telemetry: Telemetry, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """`draining` is a refusal like any other: a counter, an event, and no wait."""
    with caplog.at_level(logging.INFO, "genesis.tests"):
        async with Queue(telemetry=telemetry) as queue:
            assert await queue.drain(0) == 0
            with pytest.raises(QueueDrainingError):
                async with queue.slot("sales", item_id="late"):
                    pass
    labels = {"queue": "sales", "reason": "draining"}
    assert registry.get_sample_value("genesis_queue_refused_total", labels) == 1
    assert registry.get_sample_value("genesis_queue_waiting", {"queue": "sales"}) == 0
    assert waits(registry) == {}
    told = [r.__dict__ for r in caplog.records if r.__dict__.get("item_id") == "late"]
    assert [(each["event"], each["reason"]) for each in told] == [("refused", "draining")]


async def test_a_refused_call_is_not_told_as_enqueued(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    """timeout=0 without a free slot never stood in line: `refused`, and no `enqueued` before it."""
    caplog.set_level(logging.DEBUG, "genesis.tests")
    async with queue.slot("sales"):
        with pytest.raises(QueueTimeoutError):
            async with queue.slot("sales", item_id="refused", timeout=0):
                pytest.fail("two in a queue with limit 1")
    told = [r.__dict__["event"] for r in caplog.records if r.__dict__.get("item_id") == "refused"]
    assert told == ["refused"]


async def test_evicting_nobody_is_not_told_as_evicted(
    queue: Queue, events: Callable[[], list[str]]
) -> None:
    """An eviction that found nobody is an inspection, not an `evicted`."""
    assert await queue.evict("sales", "stranger") == 0
    assert "evicted" not in events()


# --- sinks that fail -------------------------------------------------------------------------------


async def use_everything(queue: Queue) -> None:
    """Every operation and every ending, with the results that they have without telemetry."""
    heir_entered = asyncio.Event()

    async def wait(item_id: str, timeout: float | None = None) -> str:
        async with queue.slot("sales", item_id=item_id, timeout=timeout):
            heir_entered.set()
        return item_id

    async with queue.slot("sales", item_id="holder", max_concurrent=1) as slot:
        assert slot.fencing_token
        waiters = {name: asyncio.create_task(wait(name)) for name in ("gone", "victim", "heir")}
        await quiesce()
        assert (await queue.stats("sales"))[:3] == (3, 1, 1)
        assert await queue.position("sales", "victim") == 2
        assert len(await queue.entries("sales")) == 4
        waiters["gone"].cancel()
        assert await queue.evict("sales", "victim") == 1
        for timeout in (0, 0.001):
            with pytest.raises(QueueTimeoutError):
                await wait("late", timeout)
        with pytest.raises(EvictedError):
            await waiters["victim"]
        await asyncio.wait({waiters["gone"]})
        assert waiters["gone"].cancelled()
        assert not heir_entered.is_set()
        await queue.set_limit("sales", 2)
        assert await waiters["heir"] == "heir"
        await queue.set_limit("sales", None)
        assert await queue.evict("sales", "holder") == 1
        assert slot.lost
    with pytest.raises(ZeroDivisionError):
        async with queue.slot("sales"):
            raise ZeroDivisionError
    await queue.ping()
    assert not state_of(queue)
    waiter = asyncio.create_task(wait("last"))
    await queue.set_limit("sales", 0)
    await quiesce()
    await queue.close()
    with pytest.raises(BackendUnavailableError):
        await waiter
    assert not state_of(queue)


@pytest.mark.parametrize("sick", SICK)
async def test_a_failing_sink_never_reaches_a_call(registry: CollectorRegistry, sick: str) -> None:
    """Whatever a sink raises, calls go as they go without it, and the failure is counted."""
    sink, make = SICK[sick]
    await use_everything(Queue(telemetry=make(registry)))
    if sink:
        assert errors(registry, sink) > 0
    others = {"metrics", "traces", "logs", "label"} - {sink}
    assert [other for other in others if errors(registry, other)] == []


async def test_a_metric_that_fails_now_and_then_is_counted_each_time(
    registry: CollectorRegistry,
) -> None:
    """And asked once an operation: what it has counted before it raised is not counted twice."""
    telemetry = Telemetry(registry)
    backend = ObservedBackend(InMemoryBackend(), telemetry, "1")
    asked = 0

    def fickle(seconds: float) -> None:
        nonlocal asked
        asked += 1
        if asked % 2:
            raise SickError

    ticket = (await backend.enter(EnterRequest("sales", "call"))).ticket
    backend.leave(ticket)
    for operation in ("enter", "leave"):
        backend._well[operation] = fickle
    for _ in range(10):
        backend.leave((await backend.enter(EnterRequest("sales", "call"))).ticket)
    assert (asked, errors(registry, "metrics")) == (20, 10)


class Telling(InMemoryBackend):
    """Fills in a wait by itself, by whatever clock."""

    async def enter(self, entry: EnterRequest) -> EnterResult:
        admission = await super().enter(entry)
        return admission._replace(grant=Grant(1, None, 5.0))


async def test_a_wait_that_a_backend_fills_in_is_not_believed(registry: CollectorRegistry) -> None:
    """The slot, and the histogram, tell what the layer measured: nothing, for a grant at once."""
    queue = Queue(Telling(), telemetry=Telemetry(registry))
    async with queue.slot("sales") as slot:
        assert slot.waited == 0.0
    labels = {"queue": "sales", "outcome": "granted"}
    assert registry.get_sample_value(f"{names.WAIT_SECONDS}_sum", labels) == 0.0


@pytest.mark.parametrize(
    "sick", ["provider", "tracer", "span", "processor", "logger", "level", "structlog"]
)
async def test_a_failing_tracer_or_logger_keeps_no_metric_back(
    registry: CollectorRegistry, sick: str
) -> None:
    """The sinks are independent of each other: every call is counted all the same."""
    await use_everything(Queue(telemetry=SICK[sick][1](registry)))
    assert waits(registry) == {"granted": 3, "cancelled": 1, "evicted": 1, "timeout": 1, "error": 1}
    assert holds(registry) == {"released": 1, "evicted": 1, "error": 1}
    assert gauges(registry) == (0, 0)


@pytest.mark.parametrize("sick", ["registry", "instruments", "provider", "tracer", "span", "processor"])
async def test_a_failing_registry_or_tracer_keeps_no_log_event_back(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, sick: str
) -> None:
    """A lost slot, above all, is told in the log even if no metric can be counted."""
    telemetry = SICK[sick][1](registry)
    telemetry.log = Telemetry(CollectorRegistry(), logger=logging.getLogger("genesis.tests")).log
    caplog.set_level(logging.DEBUG, "genesis.tests")
    await use_everything(Queue(telemetry=telemetry))
    records = [r.__dict__ for r in caplog.records if "event" in r.__dict__]
    assert {"timeout", "cancelled", "evicted", "limit_changed", "error"} <= {
        r["event"] for r in records
    }
    holder = [r for r in records if r.get("item_id") == "holder"]
    assert {"enqueued", "granted", "released"} <= {r["event"] for r in holder}
    # That the holder has lost its slot, apart from that somebody asked for its eviction.
    assert [r["event"] for r in holder if "reason" in r] == ["evicted"]


def test_it_works_without_an_sdk() -> None:
    """With nothing of OpenTelemetry but its API, calls are counted, and there is nothing to trace."""
    program = """
import asyncio, sys
sys.modules["opentelemetry.sdk"] = None
import genesis
from genesis.observability import Telemetry
from prometheus_client import CollectorRegistry
registry = CollectorRegistry()

async def main():
    async with genesis.Queue(telemetry=Telemetry(registry)) as queue:
        async with queue.slot("sales"):
            other = asyncio.create_task(queue.slot("sales").__aenter__())
            await asyncio.sleep(0)
        await other

asyncio.run(main())
count = registry.get_sample_value(
    "genesis_queue_wait_seconds_count", {"queue": "sales", "outcome": "granted"}
)
assert count == 2, count
assert not registry.get_sample_value("genesis_telemetry_errors_total", {"sink": "traces"})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
