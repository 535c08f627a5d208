"""A lost slot is always reported, and a started span ends, in whatever order slots are left."""

from __future__ import annotations

import asyncio
import logging
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any

import opentelemetry.context
import opentelemetry.trace
import pytest
from opentelemetry import baggage
from opentelemetry.context.context import Context, _RuntimeContext
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.backends.protocol import Ticket
from genesis.observability import Telemetry, names
from genesis.queue import InMemoryBackend
from tests.conftest import Spans


class Forgetful(InMemoryBackend):
    """A user's own backend, whose leases lapse without an event."""

    def lapsed(self, ticket: Ticket) -> bool:
        return True


async def test_a_loss_that_only_the_slot_notices_is_counted(registry: CollectorRegistry) -> None:
    """slot.lost and the hold's outcome agree, even for a backend that emits no event."""
    async with Queue(Forgetful(), telemetry=Telemetry(registry)) as queue:
        async with queue.slot("sales") as slot:
            pass
        assert slot.lost
    labels = {"queue": "sales", "outcome": "lost"}
    assert registry.get_sample_value(f"{names.HOLD_SECONDS}_count", labels) == 1


async def test_a_body_left_in_another_task_logs_no_context_error(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """The context of the span belongs to the task that entered; another task does not change it."""
    async with Queue(telemetry=telemetry) as queue:
        request = queue.slot("sales")
        await request.__aenter__()
        await asyncio.create_task(request.__aexit__(None, None, None))
    assert "Failed to detach" not in caplog.text


async def test_the_handler_of_the_lost_event_finds_the_slot_lost(registry: CollectorRegistry) -> None:
    """Even a log handler that reads the slot while the block is being left."""
    asked: list[bool] = []

    class Asking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.__dict__["event"] == "lost":
                asked.append(slot.lost)

    logger = logging.Logger("tests", logging.INFO)
    logger.addHandler(Asking())
    queue = Queue(Forgetful(), telemetry=Telemetry(registry, logger=logger))
    async with queue.slot("sales") as slot:
        pass
    assert asked == [True]


class OfItsOwn(_RuntimeContext):
    """A runtime context with its own kind of token, as OTEL_PYTHON_CONTEXT can select one."""

    def __init__(self) -> None:
        self._current = ContextVar("OfItsOwn", default=Context())  # noqa: B039 - it is immutable

    def attach(self, context: Context) -> Any:
        return (self._current.set(context),)

    def get_current(self) -> Context:
        return self._current.get()

    def detach(self, token: Any) -> None:
        self._current.reset(token[0])


async def test_spans_end_in_a_runtime_context_of_another_kind(
    telemetry: Telemetry, spans: Spans, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opentelemetry.context, "_RUNTIME_CONTEXT", OfItsOwn())
    queue = Queue(telemetry=telemetry)
    async with queue.slot("sales"):
        pass
    assert {span.name for span in spans.get_finished_spans()} >= {"queue.hold", "queue.release"}
    assert not opentelemetry.trace.get_current_span().get_span_context().is_valid
    errors = {"sink": "traces"}
    assert registry.get_sample_value("genesis_telemetry_errors_total", errors) == 0


@pytest.mark.parametrize("sampler", [ALWAYS_ON, ALWAYS_OFF])
@pytest.mark.parametrize("has_parent", [True, False])
async def test_what_a_body_attaches_and_forgets_ends_with_it(
    registry: CollectorRegistry, sampler: Sampler, has_parent: bool
) -> None:
    """Sampled or not, with or without a caller's trace."""
    provider = TracerProvider(sampler=ParentBased(sampler), shutdown_on_exit=False)
    queue = Queue(telemetry=Telemetry(registry, provider))
    caller = nullcontext() if not has_parent else provider.get_tracer("a").start_as_current_span("call")
    with caller:
        async with queue.slot("sales"):
            opentelemetry.context.attach(baggage.set_baggage("customer", "42"))
        assert baggage.get_baggage("customer") is None
