"""Spans with the OpenTelemetry API alone.

`Trail` holds the spans of one passage, in the caller's own trace; a caller without a trace gets one,
which begins with `acquire`. If that span is not recorded (no SDK, not sampled), none of the others is
made: they would not be recorded either, and each would cost as much as the line itself.
"""

from __future__ import annotations

import asyncio
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from genesis.backends.protocol import Admission, Entry, Grant, Party
from genesis.observability import names

__all__ = ["Tracing", "Trail", "context_of", "fail", "traceparent"]


class Tracing:
    """Starts the spans of one backend's queues.

    Args:
        provider: None takes the process' provider, also one that is set later.
        version: of this library.
    """

    def __init__(
        self,
        provider: trace.TracerProvider | None,
        version: str,
        backend: str,
        instance_id: str,
    ) -> None:
        self._provider = provider
        self._look_again = 0.0  # when to look for an SDK, seconds of the monotonic clock
        self._tracer = trace.get_tracer("genesis", version, tracer_provider=provider)
        self._backend = backend
        self._instance_id = instance_id

    def start(
        self,
        name: str,
        queue_id: str,
        item_id: str,
        kind: SpanKind = SpanKind.INTERNAL,
        parent: Context | None = None,
    ) -> Span:
        """Start `<name> <queue>` with the attributes that every span bears."""
        attributes = {
            names.ITEM_ID: item_id,
            names.QUEUE_ID: queue_id,
            names.INSTANCE_ID: self._instance_id,
            names.BACKEND: self._backend,
        }
        if kind is not SpanKind.INTERNAL:
            attributes[names.MESSAGE_ID] = item_id
            attributes[names.DESTINATION] = queue_id
        return self._tracer.start_span(f"{name} {queue_id}", parent, kind, attributes)

    def trail(self, entry: Entry, now: float) -> Trail | None:
        """The spans of a passage; None as long as the application has no SDK.

        Whether it has one is looked up once a second: an application may set it up after its queues,
        and the look costs as much as a step of the line.
        """
        if self._provider is None:
            if now < self._look_again:
                return None
            provider = trace.get_tracer_provider()
            if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
                self._look_again = now + 1.0
                return None
            self._provider = provider
        return Trail(self, entry)


class Trail:
    """The spans of one passage. Its methods may raise what the tracer raises."""

    __slots__ = (
        "_acquire",
        "_enqueue",
        "_entry",
        "_hold",
        "_parent",
        "_task",
        "_token",
        "_tracing",
        "_wait",
    )

    def __init__(self, tracing: Tracing, entry: Entry) -> None:
        self._tracing = tracing
        self._entry = entry
        self._parent = otel_context.get_current()
        self._acquire = tracing.start(
            names.SPAN_ACQUIRE, entry.queue_id, entry.item_id, parent=self._parent
        )
        self._enqueue: Span | None = None
        self._wait: Span | None = None
        self._hold: Span | None = None
        self._token: Any = None
        self._task: asyncio.Task[Any] | None = None  # in whose context the token is good
        if not trace.get_current_span(self._parent).get_span_context().is_valid:
            self._parent = trace.set_span_in_context(self._acquire, self._parent)
        if self._acquire.is_recording():
            within = trace.set_span_in_context(self._acquire, self._parent)
            self._enqueue = self._span(names.SPAN_ENQUEUE, SpanKind.PRODUCER, within)

    @property
    def recorded(self) -> bool:
        return self._enqueue is not None

    @property
    def context(self) -> SpanContext:
        """Of the innermost span of the passage, for exemplars and log events."""
        return (self._hold or self._acquire).get_span_context()

    def carried(self) -> str:
        """What travels with the ticket: the `enqueue` span, which ends at once and so is visible
        while the call still waits."""
        return traceparent(self._enqueue)

    def held(self) -> str:
        """What is told to whoever gets the slot next: the `hold` span."""
        return traceparent(self._hold)

    def enqueued(self, admission: Admission) -> None:
        if self._enqueue is None:
            return
        self._enqueue.set_attributes(
            {names.AT_POSITION: admission.position, names.AT_DEPTH: admission.depth}
        )
        self._enqueue.end()
        if admission.position:
            within = trace.set_span_in_context(self._acquire, self._parent)
            self._wait = self._span(names.SPAN_WAIT, SpanKind.INTERNAL, within)

    def end_wait(
        self,
        waited: float,
        outcome: names.WaitOutcome,
        error: BaseException | None,
        released_by: Party | None,
    ) -> None:
        if self._enqueue is not None and self._enqueue.is_recording():
            self._enqueue.end()  # entering failed before it was answered
        if self._wait is not None and released_by is not None:
            _link(self._wait, released_by, names.LINK_RELEASED_BY)
        for span in (self._wait, self._acquire):
            if span is None:
                continue
            span.set_attributes({names.OUTCOME: outcome, names.WAITED_SECONDS: waited})
            if outcome not in ("granted", "cancelled"):
                fail(span, outcome if error is None else error)
            span.end()

    def begin_hold(self, grant: Grant) -> None:
        """Start `hold` and make it the current span of the caller's body."""
        if self._enqueue is None:
            # Not recorded. The body's own spans must not be either, if the decision was made here.
            self._attach(self._parent)
            return
        self._hold = self._span(names.SPAN_HOLD, SpanKind.CONSUMER, self._parent)
        self._hold.set_attributes(
            {names.FENCING_TOKEN: grant.fencing_token, names.WAITED_SECONDS: grant.waited}
        )
        self._attach(trace.set_span_in_context(self._hold, otel_context.get_current()))

    def end_hold(self, outcome: names.HoldOutcome, error: BaseException | None) -> Span | None:
        """End `hold`, leave its context, and start `release`, which the caller ends."""
        self._detach()
        if self._hold is None:
            return None
        self._hold.set_attribute(names.OUTCOME, outcome)
        if outcome != "released":
            fail(self._hold, outcome if error is None else error)
        self._hold.end()
        return self._span(names.SPAN_RELEASE, SpanKind.CLIENT, self._parent)

    @staticmethod
    def end_release(span: Span, granted_to: tuple[Party, ...], error: BaseException | None) -> None:
        for party in granted_to:
            _link(span, party, names.LINK_GRANTED_TO)
        if error is not None:
            fail(span, error)
        span.end()

    def _attach(self, context: Context) -> None:
        self._task = asyncio.current_task()
        self._token = otel_context.attach(context)

    def _detach(self) -> None:
        """Leave the context; a body left in another task than it was entered in has none to leave."""
        token, self._token = self._token, None
        if token is not None and asyncio.current_task() is self._task:
            otel_context.detach(token)
        self._task = None

    def _span(self, name: str, kind: SpanKind, parent: Context) -> Span:
        return self._tracing.start(name, self._entry.queue_id, self._entry.item_id, kind, parent)


# What a failure without an exception is called in `error.type`.
_ERROR_TYPES = {
    "timeout": "QueueTimeoutError",
    "evicted": "EvictedError",
    "lost": "SlotLostError",
}


def fail(span: Span, cause: BaseException | str) -> None:
    """Mark a span as failed, by an exception or by an outcome."""
    if isinstance(cause, str):
        kind = _ERROR_TYPES.get(cause, cause)
    elif type(cause) is TimeoutError:
        kind = _ERROR_TYPES["timeout"]  # what the caller gets for it
    else:
        kind = type(cause).__name__
    span.set_attribute(names.ERROR_TYPE, kind)
    span.set_status(Status(StatusCode.ERROR, str(cause)))


def _link(span: Span, party: Party, relation: str) -> None:
    """Link to the span whose `traceparent` came through the backend, if there is one."""
    context = context_of(party.context)
    if context is not None:
        attributes = {
            names.LINK: relation,
            names.ITEM_ID: party.item_id,
            names.INSTANCE_ID: party.instance_id,
        }
        span.add_link(context, attributes)


def traceparent(span: Span | None) -> str:
    """The span's context as W3C `traceparent`; empty if there is none.

    Written and read here, and not with the application's propagator: what travels with the ticket
    must be understood by every instance, whatever each has configured.
    """
    if span is None:
        return ""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def context_of(text: str) -> SpanContext | None:
    """The context that a `traceparent` names; None if it names none."""
    parts = text.split("-")
    if len(parts) != 4 or [len(part) for part in parts] != [2, 32, 16, 2]:
        return None
    try:
        trace_id, span_id, flags = int(parts[1], 16), int(parts[2], 16), int(parts[3], 16)
    except ValueError:
        return None
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    return context if context.is_valid else None
