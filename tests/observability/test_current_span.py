"""The current span, and the links to other calls."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextvars import Context
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.backends.protocol import (
    CallRef,
    EnterRequest,
    Grant,
    Reclaimed,
    SlotLost,
)
from genesis.observability import Telemetry, names
from genesis.observability.current import Hold
from genesis.observability.layer import ObservedBackend
from genesis.queue import InMemoryBackend
from tests.conftest import Spans
from tests.support.waiting import quiesce, wait_until


async def test_slots_left_in_another_order_leave_the_context_as_it_was(telemetry: Telemetry) -> None:
    queue = Queue(telemetry=telemetry)
    before = trace.get_current_span()
    for _ in range(3):
        first, second = queue.slot("a"), queue.slot("b")
        await first.__aenter__()
        await second.__aenter__()
        inside = trace.get_current_span().get_span_context()
        await first.__aexit__(None, None, None)
        assert trace.get_current_span().get_span_context() == inside
        await second.__aexit__(None, None, None)
        assert trace.get_current_span() is before


@pytest.mark.parametrize("sampler", [ALWAYS_ON, ALWAYS_OFF], ids=["sampled", "unsampled"])
async def test_what_was_attached_in_between_stays_if_the_outer_slot_is_left_first(
    sampler: Sampler,
) -> None:
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    queue = Queue(telemetry=Telemetry(CollectorRegistry(), provider))
    outer, inner = queue.slot("a"), queue.slot("b")
    with provider.get_tracer("the caller's").start_as_current_span("request"):
        await outer.__aenter__()
        attached = otel_context.attach(baggage.set_baggage("tenant", "acme"))
        await inner.__aenter__()
        await outer.__aexit__(None, None, None)
        assert baggage.get_baggage("tenant") == "acme"
        await inner.__aexit__(None, None, None)
        assert baggage.get_baggage("tenant") == "acme"
        otel_context.detach(attached)


async def test_an_unsampled_call_that_a_holder_starts_stays_in_its_trace_when_that_hold_ends() -> None:
    """The spans of its body start no new trace, which might be sampled."""
    provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF), shutdown_on_exit=False)
    queue = Queue(telemetry=Telemetry(CollectorRegistry(), provider))

    def trace_of_a_span_here() -> int:
        span = provider.get_tracer("the body's").start_span("work")
        return span.get_span_context().trace_id

    async def call() -> int:
        async with queue.slot("sales"):
            return trace_of_a_span_here()

    async with queue.slot("sales"):
        task = asyncio.create_task(call())
        await quiesce()
        trace_id = trace_of_a_span_here()
    assert await task == trace_id


async def test_jobs_that_start_their_successors_inside_their_slots_build_no_chain(
    telemetry: Telemetry, spans: Spans
) -> None:
    """Each job inherits the context of a slot that is then left."""
    queue = Queue(telemetry=telemetry)
    tasks: list[asyncio.Task[None]] = []

    async def job() -> None:
        async with queue.slot("relay", max_concurrent=2):
            if len(tasks) < 1_500:
                tasks.append(asyncio.create_task(job()))

    tasks.append(asyncio.create_task(job()))
    await wait_until(lambda: len(tasks) == 1_500 and all(t.done() for t in tasks), "all have run")
    await asyncio.gather(*tasks)
    assert len(spans.named("release")) == 1_500
    tasks.clear()
    spans.clear()
    gc.collect()
    assert sum(type(each) is Hold for each in gc.get_objects()) < 10


async def test_a_generator_that_is_closed_leaves_no_ended_span_current(
    telemetry: Telemetry, spans: Spans
) -> None:
    """It is closed in another task; the next call of its consumer starts a new trace."""
    queue = Queue(telemetry=telemetry)

    async def stream() -> AsyncIterator[int]:
        async with queue.slot("llm", max_concurrent=5):
            yield 1

    for _ in range(3):
        async for _ in stream():
            break
        gc.collect()
        await wait_until(lambda: len(spans.named("release")) > 0, "it is closed")
        spans.clear()
        assert not trace.get_current_span().get_span_context().is_valid
        async with queue.slot("sales"):
            pass
        (slot,) = spans.named("slot")
        assert slot.parent is None
        spans.clear()


def of(span: Any) -> dict[str, Any]:
    return dict(span.attributes)


async def test_each_span_ends_before_the_next_begins(telemetry: Telemetry, spans: Spans) -> None:
    """All spans of a call without a parent are under `queue.slot`."""
    queue = Queue(telemetry=telemetry)

    async def call() -> None:
        async with queue.slot("sales", item_id="waiter"):
            pass

    async with queue.slot("sales", item_id="holder"):
        waiting = Context().run(asyncio.ensure_future, call())  # a caller without a span
        await quiesce()
    await waiting
    found: list[Any] = list(spans.get_finished_spans())
    mine = {s.name: s for s in found if of(s)[names.ITEM_ID] == "waiter"}
    order = ("queue.enqueue", "queue.wait", "queue.hold", "queue.release")
    for one, next_one in pairwise(order):
        assert mine[one].end_time + 1_000 <= mine[next_one].start_time, (one, next_one)
    slot = mine["queue.slot"]
    assert slot.parent is None
    assert slot.start_time <= mine["queue.acquire"].start_time
    assert slot.end_time >= mine["queue.release"].end_time
    for name in ("queue.acquire", "queue.hold", "queue.release"):
        assert mine[name].parent.span_id == slot.context.span_id
    assert of(mine["queue.wait"])["genesis.released_by.item_id"] == "holder"
    assert of(mine["queue.enqueue"])[names.HOLDERS] == ("holder",)
    (release,) = [s for s in spans.named("release") if of(s)[names.ITEM_ID] == "holder"]
    assert of(release)["genesis.granted_to.item_id"] == "waiter"


async def test_no_span_ends_before_it_begins_if_the_clock_steps_back(
    telemetry: Telemetry, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when NTP sets it: 5 s back while the call waits, 5 s more while it holds its slot."""
    queue, step, back = Queue(telemetry=telemetry), 5 * 10**9, 0
    clock = SimpleNamespace(time_ns=lambda: time.time_ns() - back)
    monkeypatch.setattr("genesis.observability.spans.time", clock)

    async def call() -> None:
        nonlocal back
        async with queue.slot("sales", item_id="waiter"):
            back += step

    async with queue.slot("sales"):
        waiting = Context().run(asyncio.ensure_future, call())
        await quiesce()
        back += step
    await waiting
    found: list[Any] = list(spans.get_finished_spans())
    mine = {s.name: s for s in found if of(s)[names.ITEM_ID] == "waiter"}
    assert len(mine) == 6
    assert all(span.start_time < span.end_time for span in found)
    for one, next_one in pairwise(("queue.enqueue", "queue.wait", "queue.hold", "queue.release")):
        assert mine[one].end_time < mine[next_one].start_time, (one, next_one)


async def test_the_releasing_call_is_named_without_a_link(telemetry: Telemetry, spans: Spans) -> None:
    """The other call was not sampled: it has no context, but a name."""
    backend = ObservedBackend(Unsampled(), telemetry, "1")
    await backend.enter(EnterRequest("sales", "holder", 1))
    waiter = await backend.enter(EnterRequest("sales", "waiter", 1))
    await backend.wait(waiter.ticket, None)
    backend.leave(waiter.ticket)
    (wait,) = spans.named("wait")
    assert wait.links == ()
    assert of(wait)["genesis.released_by.item_id"] == "unsampled"
    assert of(wait)["genesis.released_by.instance_id"] == "elsewhere"


class Unsampled(InMemoryBackend):
    async def wait(self, ticket: Any, timeout: float | None) -> Grant:
        return Grant(7, CallRef("unsampled", "elsewhere", ""))


async def test_a_reclaimed_call_ends_in_its_own_trace(telemetry: Telemetry, spans: Spans) -> None:
    """`queue.reclaim`, an error, under the span whose context came with the ticket."""
    inner = InMemoryBackend()
    ObservedBackend(inner, telemetry, "1")
    context = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
    inner._emit(Reclaimed("sales", "call-1", "dead-1", "holding", context))
    (reclaim,) = spans.named("reclaim")
    assert f"{reclaim.context.trace_id:032x}" == "0123456789abcdef0123456789abcdef"
    assert of(reclaim)["genesis.reclaimed_from.instance_id"] == "dead-1"
    assert not reclaim.status.is_ok
    assert reclaim.start_time < reclaim.end_time  # or Jaeger warns of a negative duration


async def test_a_loss_has_its_time_on_the_hold(telemetry: Telemetry, spans: Spans) -> None:
    inner = InMemoryBackend()
    backend = ObservedBackend(inner, telemetry, "1")
    ticket = (await backend.enter(EnterRequest("sales", "call"))).ticket
    inner._emit(SlotLost(ticket, "lapsed"))
    backend.leave(ticket)
    (hold,) = spans.named("hold")
    assert [(event.name, dict(event.attributes)) for event in hold.events] == [
        ("lost", {"reason": "lapsed"})
    ]
