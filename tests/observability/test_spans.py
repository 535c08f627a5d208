"""The spans of a call: their names, parents, links, attributes and ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, SamplingResult
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry

from genesis import Queue, QueueTimeoutError
from genesis.backends.protocol import EnterRequest, EnterResult
from genesis.observability import Telemetry
from genesis.queue import InMemoryBackend
from tests.conftest import Spans, state_of
from tests.support.observations import WAIT_OUTCOMES, end_as, errors, gauges, of
from tests.support.sick import SickError
from tests.support.waiting import quiesce


async def test_the_spans_of_a_call_that_waited(
    queue: Queue, telemetry: Telemetry, spans: Spans, inner: InMemoryBackend
) -> None:
    """acquire > enqueue, wait; hold > the body's own; release: all in the caller's trace."""
    assert telemetry.tracer_provider is not None
    tracer = telemetry.tracer_provider.get_tracer("the caller's")

    waited = []

    async def call() -> None:
        with tracer.start_as_current_span("call", context=Context()):
            async with queue.slot("sales", item_id="waiter") as slot:
                waited.append(round(slot.waited, 3))
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
    assert [of(mine["wait"])["genesis.waited_seconds"]] == waited
    assert of(mine["hold"])["genesis.outcome"] == "released"
    assert of(mine["hold"])["genesis.fencing_token"] > 0


async def test_hand_offs_are_linked_both_ways(queue: Queue, spans: Spans) -> None:
    """The waiter's wait links to the hold that freed its slot; the holder's release to the waiter."""

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
    """However a wait ends, all its spans end, and the caller's context is restored."""
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


class EntersSlowly(InMemoryBackend):
    """A backend whose reply to `enter` takes 30 ms."""

    async def enter(self, entry: EnterRequest) -> EnterResult:
        result = await super().enter(entry)
        await asyncio.sleep(0.03)  # that it takes so long is the subject
        return result


async def test_a_wait_names_the_timeout_of_its_call(telemetry: Telemetry, spans: Spans) -> None:
    """In seconds from entering, to the millisecond; not what was left of it when the reply came."""
    queue = Queue(EntersSlowly(), telemetry=telemetry)
    async with queue.slot("sales"):
        with pytest.raises(QueueTimeoutError):
            async with queue.slot("sales", timeout=0.05):
                pass
    (wait,) = spans.named("wait")
    timeout = of(wait)["genesis.timeout_seconds"]
    assert timeout == round(timeout, 3) == pytest.approx(0.05, abs=0.01)


async def test_a_slot_lost_before_its_task_wakes_up_is_an_event_too(queue: Queue, spans: Spans) -> None:
    """The call is granted and evicted in one iteration of the loop: `hold` begins afterwards."""

    async def call() -> bool:
        async with queue.slot("sales", item_id="waiter") as slot:
            return slot.lost

    async with queue.slot("sales", item_id="holder"):
        task = asyncio.create_task(call())
        await quiesce()
    assert await queue.evict("sales", "waiter") == 1
    assert await task
    hold = next(s for s in spans.named("hold") if of(s)["genesis.item_id"] == "waiter")
    assert [(event.name, dict(event.attributes or {})) for event in hold.events] == [
        ("evicted", {"reason": "evicted"})
    ]
    assert of(hold)["genesis.outcome"] == "evicted"


async def test_a_call_that_a_holder_starts_keeps_its_parent_when_that_hold_ends(
    queue: Queue, spans: Spans
) -> None:
    """All its spans are in one trace, although the hold around them ends while it waits."""

    async def call() -> None:
        async with queue.slot("sales", item_id="successor"):
            pass

    async with queue.slot("sales", item_id="holder"):
        task = asyncio.create_task(call())
        await quiesce()
    await task
    around = next(s for s in spans.named("hold") if of(s)["genesis.item_id"] == "holder")
    found: list[Any] = list(spans.get_finished_spans())
    mine = {s.name: s for s in found if of(s)["genesis.item_id"] == "successor"}
    names = {"queue." + name for name in ("acquire", "enqueue", "wait", "hold", "release")}
    assert mine.keys() == names
    assert {s.context.trace_id for s in mine.values()} == {around.context.trace_id}
    for name in ("acquire", "hold", "release"):
        assert mine["queue." + name].parent.span_id == around.context.span_id


async def test_a_body_s_own_timeout_is_not_the_queue_s(queue: Queue, spans: Spans) -> None:
    """`error.type` of a hold names the body's error; of a wait, the caller's error."""

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


class WithoutTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


async def test_a_hold_ends_even_if_the_body_s_error_has_no_text(
    queue: Queue, registry: CollectorRegistry, spans: Spans
) -> None:
    """Its class stands for the text; no sink has failed."""
    with pytest.raises(WithoutTextError):
        async with queue.slot("sales"):
            raise WithoutTextError
    (hold,) = spans.named("hold")
    assert hold.status.description == of(hold)["error.type"] == "WithoutTextError"
    assert errors(registry, "traces") == 0


def test_a_call_that_outlives_its_loop_ends_its_spans(
    telemetry: Telemetry, registry: CollectorRegistry, spans: Spans
) -> None:
    """A coroutine that is closed after its loop gives its slot back, and `hold` ends."""
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
    """The other spans of the call end and are exported, and each exemplar names an exported span."""
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
