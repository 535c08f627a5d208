"""Spans with the OpenTelemetry API alone.

`CallSpans` holds the spans of one passage, in the trace of the caller; a caller without one gets one,
which begins with `acquire`. If that span is not recorded, an `UnrecordedSpans` takes its place, and
none of the others is made: they would not be recorded either, and each would cost as much as the line
itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextvars import Token
from typing import Any, TypeAlias

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from genesis.backends.protocol import CallRef, EnterRequest, EnterResult, Grant
from genesis.observability import names

__all__ = ["Tracing", "CallSpans", "UnrecordedSpans", "context_of", "fail"]

StartSpan: TypeAlias = Callable[..., Span]


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
        self.next_look = -math.inf  # seconds of the clock before which `trail` gives none
        self.start_span = trace.get_tracer("genesis", version, tracer_provider=provider).start_span
        self._backend = backend
        self._instance_id = instance_id

    def attributes(self, queue_id: str, item_id: str) -> dict[str, Any]:
        """What every span bears."""
        return {
            names.ITEM_ID: item_id,
            names.QUEUE_ID: queue_id,
            names.INSTANCE_ID: self._instance_id,
            names.BACKEND: self._backend,
        }

    def inspection(self, operation: str, queue_id: str, item_id: str) -> Span:
        """The one span of an operation that is not a step of a passage."""
        attributes = self.attributes(queue_id, item_id)
        name = names.SPAN_INSPECTION + operation
        return self.start_span(name, None, SpanKind.CLIENT, attributes)

    def trail(self, entry: EnterRequest, now: float) -> CallSpans | UnrecordedSpans | None:
        """The spans of a passage; None as long as the application has no SDK.

        Whether it has one is looked up once a second: an application may set it up after its queues,
        and the look costs as much as a step of the line.
        """
        if self._provider is None:
            provider = trace.get_tracer_provider()
            if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
                self.next_look = now + 1.0
                return None
            self._provider = provider
        parent = otel_context.get_current()
        attributes = self.attributes(entry.queue_id, entry.item_id)
        acquire = self.start_span(names.SPAN_ACQUIRE, parent, SpanKind.INTERNAL, attributes)
        if not acquire.is_recording():
            return UnrecordedSpans(acquire, parent)
        return CallSpans(self.start_span, attributes, acquire, parent)


class UnrecordedSpans:
    """What is left of a passage's spans if they are not recorded: the ids, and the decision.

    Args:
        acquire: the dropped span.
        parent: the context in which it was started.
    """

    __slots__ = ("_acquire", "_parent", "_token")

    def __init__(self, acquire: Span, parent: Context) -> None:
        self._acquire = acquire
        self._parent = parent
        self._token: Token[Context] | None = None

    def ids(self) -> dict[str, str] | None:
        """Of the dropped span, for log events; None if it has none."""
        context = self._acquire.get_span_context()
        if not context.is_valid:
            return None
        return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

    def begin_hold(self, grant: Grant) -> None:  # noqa: ARG002
        """If the decision was made here, the body's own spans are not recorded either.

        Else nothing changes but what the body may attach and forget: it ends with the body, as it does
        when the call is recorded.
        """
        context = self._parent
        if not context or not trace.get_current_span(context).get_span_context().is_valid:
            context = trace.set_span_in_context(self._acquire, context)
        self._token = otel_context.attach(context)

    def end_hold(self, outcome: names.HoldOutcome, error: BaseException | None) -> None:  # noqa: ARG002
        """Leave the context."""
        token, self._token = self._token, None
        _detach(token)


class CallSpans:
    """The spans of one passage. Its methods may raise what the tracer raises.

    A span costs as much as the line itself, and each attribute that it is given later half as much as
    one that it is made with. So only what others need to know of at once is made at once: `acquire` and
    `hold`, the parents of others, and `enqueue`, which is to be seen while the call still waits. `wait`
    and `release` are made when they end, back-dated, with all that is known by then.
    """

    __slots__ = (
        "_acquire",
        "_attributes",
        "_current",
        "_enqueue",
        "_hold",
        "_parent",
        "_since",
        "_start",
        "_token",
        "_trace_id",
        "_within",
    )

    def __init__(
        self,
        start: StartSpan,
        attributes: dict[str, Any],
        acquire: Span,
        parent: Context,
    ) -> None:
        self._start = start
        self._attributes = attributes  # what every span bears
        self._acquire = acquire
        self._current = acquire.get_span_context()  # of `hold` once there is one
        self._within = trace.set_span_in_context(acquire, parent)  # for the children of `acquire`
        has_parent = trace.get_current_span(parent).get_span_context().is_valid
        self._parent = parent if has_parent else self._within  # for `hold` and `release`
        self._trace_id = ""  # in hex, once somebody wants it
        self._hold: Span | None = None
        self._since = 0  # when `wait` or `release` began, in ns; 0 while neither runs
        self._token: Token[Context] | None = None
        try:
            self._enqueue = self._span(names.SPAN_ENQUEUE, SpanKind.PRODUCER, self._within, attributes)
        except Exception:
            acquire.end()  # without a trail nobody else would
            raise

    def ids(self) -> dict[str, str] | None:
        """Of the innermost span of the passage, for log events; None if it has none."""
        if not self._current.is_valid:
            return None
        return {"trace_id": self._hex_trace_id(), "span_id": f"{self._current.span_id:016x}"}

    def exemplar(self) -> dict[str, str] | None:
        """As `ids`, of a span that can be looked up."""
        return self.ids() if self._current.trace_flags.sampled else None

    def carried(self) -> str:
        """What travels with the ticket: the `enqueue` span, which ends at once and so is visible
        while the call still waits."""
        return self._traceparent(self._enqueue.get_span_context())

    def held(self) -> str:
        """What is told to whoever gets the slot next: the `hold` span."""
        return "" if self._hold is None else self._traceparent(self._current)

    def enqueued(self, admission: EnterResult) -> None:
        self._enqueue.set_attribute(names.AT_POSITION, admission.position)
        self._enqueue.set_attribute(names.AT_DEPTH, admission.depth)
        self._enqueue.end()
        if admission.position:
            self._since = time.time_ns()

    def end_wait(
        self,
        waited: float,
        outcome: names.WaitOutcome,
        error: BaseException | None,
        released_by: CallRef | None,
    ) -> None:
        if self._enqueue.is_recording():
            self._enqueue.end()  # entering failed before it was answered
        failure: BaseException | str | None = None
        if outcome == "timeout":
            failure = outcome  # and not the backend's TimeoutError: the caller gets another
        elif outcome not in ("granted", "cancelled"):
            failure = outcome if error is None else error
        try:
            if self._since:
                self._make_wait(waited, outcome, failure, released_by)
        finally:  # whatever becomes of `wait`: exemplars and log events name this one
            self._acquire.set_attribute(names.OUTCOME, outcome)
            self._acquire.set_attribute(names.WAITED_SECONDS, waited)
            if failure is not None:
                fail(self._acquire, failure)
            self._acquire.end()

    def _make_wait(
        self,
        waited: float,
        outcome: names.WaitOutcome,
        failure: BaseException | str | None,
        released_by: CallRef | None,
    ) -> None:
        since, self._since = self._since, 0
        attributes = {**self._attributes, names.OUTCOME: outcome, names.WAITED_SECONDS: waited}
        links = _links("released_by", () if released_by is None else (released_by,))
        wait = self._span(names.SPAN_WAIT, SpanKind.INTERNAL, self._within, attributes, links, since)
        if failure is not None:
            fail(wait, failure)
        wait.end()

    def begin_hold(self, grant: Grant) -> None:
        """Start `hold` and make it the current span of the caller's body."""
        attributes = {
            **self._attributes,
            names.FENCING_TOKEN: grant.fencing_token,
            names.WAITED_SECONDS: grant.waited,
        }
        self._hold = self._span(names.SPAN_HOLD, SpanKind.CONSUMER, self._parent, attributes)
        self._current = self._hold.get_span_context()
        context = trace.set_span_in_context(self._hold, otel_context.get_current())
        self._token = otel_context.attach(context)

    def end_hold(self, outcome: names.HoldOutcome, error: BaseException | None) -> None:
        """End `hold` and leave its context; `release` begins."""
        token, self._token = self._token, None
        _detach(token)
        if self._hold is None:
            return
        self._since = time.time_ns()
        self._hold.set_attribute(names.OUTCOME, outcome)
        if outcome != "released":
            fail(self._hold, outcome if error is None else error)
        self._hold.end()

    def refused(self, reason: names.RefusalReason, depth: int) -> None:
        """End the spans of a call that was turned away, which is not an error."""
        self._enqueue.set_attribute(names.AT_DEPTH, depth)
        self._enqueue.end()
        self._acquire.set_attribute(names.OUTCOME, reason)
        self._acquire.end()

    def end_release(
        self, granted_to: Sequence[CallRef], error: BaseException | None, *, confirmed: bool
    ) -> None:
        if not self._since:
            return
        links = _links("granted_to", granted_to)
        release = self._span(
            names.SPAN_RELEASE, SpanKind.CLIENT, self._parent, self._attributes, links, self._since
        )
        if not confirmed:
            release.set_attribute(names.OUTCOME, "unconfirmed")
        if isinstance(error, Exception):  # a cancellation is none; the slot is given back all the same
            fail(release, error)
        release.end()

    def _span(
        self,
        name: str,
        kind: SpanKind,
        parent: Context,
        attributes: dict[str, Any],
        links: Sequence[Link] = (),
        start_time: int | None = None,
    ) -> Span:
        return self._start(name, parent, kind, attributes, links, start_time)

    def _traceparent(self, context: SpanContext) -> str:
        """W3C `traceparent` of a span of this trail.

        Written and read here, and not with the application's propagator: what travels with the ticket
        must be understood by every instance, whatever each has configured.
        """
        return f"00-{self._hex_trace_id()}-{context.span_id:016x}-{context.trace_flags:02x}"

    def _hex_trace_id(self) -> str:
        if not self._trace_id:
            self._trace_id = f"{self._current.trace_id:032x}"
        return self._trace_id


def _detach(token: Token[Context] | None) -> None:
    """Make current again what was before; None if nothing was changed.

    By the token itself, and not by `opentelemetry.context.detach`, which logs an error if the body is
    left in another context than it was entered in: there the token is not good, and nothing is undone.
    """
    if token is None:
        return
    try:
        token.var.reset(token)
    except ValueError:
        return
    except AttributeError:  # the token of a runtime context that is not OpenTelemetry's own
        otel_context.detach(token)


# What a failure without an exception is called in `error.type`.
_ERROR_TYPES = {
    "timeout": "QueueTimeoutError",
    "evicted": "EvictedError",
    "lost": "SlotLostError",
}


def fail(span: Span, cause: BaseException | str) -> None:
    """Mark a span as failed, by an exception or by an outcome."""
    kind = _ERROR_TYPES.get(cause, cause) if isinstance(cause, str) else type(cause).__name__
    span.set_attribute(names.ERROR_TYPE, kind)
    span.set_status(Status(StatusCode.ERROR, str(cause)))


def _links(relation: names.Relation, parties: Sequence[CallRef]) -> list[Link]:
    """Links to the spans whose `traceparent`s came through the backend, as far as there are any."""
    links = []
    for party in parties:
        context = context_of(party.context)
        if context is not None:
            attributes = {
                names.LINK: relation,
                names.ITEM_ID: party.item_id,
                names.INSTANCE_ID: party.instance_id,
            }
            links.append(Link(context, attributes))
    return links


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
