"""Spans with the OpenTelemetry API alone.

`CallSpans` holds the spans of one passage, in the trace of the caller; a caller without one gets one,
which begins with `queue.slot`. If its first span is not recorded, an `UnrecordedSpans` takes its place,
and none of the others is made: they would not be recorded either, and each would cost as much as the
line itself.

Starting a span costs about as much as a pass through the line, and setting an attribute on it later
costs more than passing it at the start. So only what others need at once is started at once: the
parents of others, and `queue.enqueue`, which is to be seen while the call still waits. All others are
made when they end, back-dated, with all that is known by then. Times are explicit: each span ends
before the next begins, or trace viewers would leave one of two that overlap out of the critical path.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind

from genesis.backends.protocol import CallRef, EnterRequest, EnterResult, Grant, QueueBackend, Reclaimed
from genesis.observability import names
from genesis.observability.current import CurrentHold, without_ended_holds
from genesis.observability.links import StartSpan, complete, context_of, fail, ids_of, traceparent

__all__ = ["CallSpans", "Tracing", "UnrecordedSpans"]

_GAP = 1_000  # ns between two spans in sequence; what viewers can tell apart


class Tracing:
    """Starts the spans of one backend's queues.

    Args:
        provider: None takes the process' provider, also one that is set later.
        version: of this library.
    """

    def __init__(
        self, provider: trace.TracerProvider | None, version: str, backend: QueueBackend
    ) -> None:
        self._provider = provider
        self.next_look = -math.inf  # seconds of the clock before which `trail` gives none
        self.start_span = trace.get_tracer("genesis", version, tracer_provider=provider).start_span
        self._backend = backend

    def attributes(self, queue_id: str, item_id: str) -> dict[str, Any]:
        """What every span bears."""
        return {
            names.ITEM_ID: item_id,
            names.QUEUE_ID: queue_id,
            names.INSTANCE_ID: self._backend.instance_id,  # another one after a fork
            names.BACKEND: self._backend.name,
        }

    def inspection(self, operation: str, queue_id: str, item_id: str) -> Span | None:
        """The one span of an operation that is not a step of a passage; only as a part of a trace."""
        if operation == "ping" or not trace.get_current_span().is_recording():
            return None
        attributes = self.attributes(queue_id, item_id)
        attributes = {name: value for name, value in attributes.items() if value}
        return self.start_span(names.SPAN_INSPECTION + operation, None, SpanKind.CLIENT, attributes)

    def reclaimed(self, event: Reclaimed) -> None:
        """The end of a call whose instance is dead, in the call's own trace."""
        context = context_of(event.context)
        if context is None:
            return
        dead = CallRef(event.item_id, event.instance_id, event.context)
        attributes = self.attributes(event.queue_id, event.item_id) | {names.OUTCOME: event.state}
        parent = trace.set_span_in_context(trace.NonRecordingSpan(context), Context())
        now = time.time_ns()
        complete(
            self.start_span, names.SPAN_RECLAIM, parent, attributes, (dead,), now, now, "reclaimed"
        )

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
        parent = without_ended_holds(otel_context.get_current())
        attributes = self.attributes(entry.queue_id, entry.item_id)
        # An empty context, the usual one of a worker, needs no look.
        has_parent = bool(parent) and trace.get_current_span(parent).get_span_context().is_valid
        name = names.SPAN_ACQUIRE if has_parent else names.SPAN_SLOT
        first = self.start_span(name, parent, SpanKind.INTERNAL, attributes)
        if not first.is_recording():
            return UnrecordedSpans(first, parent, decided_here=not has_parent)
        return CallSpans(self.start_span, entry, attributes, first, parent, has_parent=has_parent)


class UnrecordedSpans:
    """What is left of a passage's spans if they are not recorded: the ids, and the decision.

    Args:
        first: the dropped span.
        parent: the context in which it was started.
        decided_here: whether the caller has no span of its own.
    """

    __slots__ = ("_context", "_decided_here", "_first", "_hold")

    def __init__(self, first: Span, parent: Context, *, decided_here: bool) -> None:
        self._first = first
        self._context = parent
        self._decided_here = decided_here
        self._hold: Any = None  # the context of the body

    def ids(self) -> dict[str, str] | None:
        """Of the dropped span, for log events; None if it has none."""
        return ids_of(self._first.get_span_context())

    def begin_hold(self) -> None:
        """If the decision was made here, the body's own spans are not recorded either."""
        if self._decided_here:
            self._hold = CurrentHold(self._first, self._context)
        else:
            self._context = otel_context.get_current()

    def leave_context(self) -> None:
        """Make current again what was before the body."""
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.leave()
            return
        before, now = self._context, otel_context.get_current()
        if now is not before and trace.get_current_span(now) is trace.get_current_span(before):
            otel_context.attach(before)  # the body forgot to detach something


class CallSpans:
    """The spans of one passage. Its methods may raise what the tracer raises."""

    def __init__(
        self,
        start: StartSpan,
        entry: EnterRequest,
        attributes: dict[str, Any],
        first: Span,
        parent: Context,
        *,
        has_parent: bool,
    ) -> None:
        self._start = start
        self._attributes = attributes  # what every span bears
        self._slot = None if has_parent else first
        # For `acquire`, `hold` and `release`.
        self._parent = parent if has_parent else trace.set_span_in_context(first, parent)
        self._hold: Span | None = None
        self._outer: Any = None  # the context of the body
        self._since = 0  # when `wait` or `release` began, in ns; 0 while neither runs
        self._ended: tuple[int, float, CallRef | None] | None = (
            None  # a wait whose spans are not ended yet
        )
        self._known: dict[str, Any] = {}  # what `wait` bears besides
        self._acquire = first
        try:
            if not has_parent:
                self._acquire = start(names.SPAN_ACQUIRE, self._parent, SpanKind.INTERNAL, attributes)
            for name, value in (
                (names.AT_LIMIT, entry.limit),
                (names.HEAD_START, entry.head_start or None),
                (names.TIMEOUT_SECONDS, 0.0 if entry.only_if_free else None),
            ):
                if value is not None:
                    self._acquire.set_attribute(name, value)
            self._current = self._acquire.get_span_context()  # of `hold` once there is one
            self._within = trace.set_span_in_context(self._acquire, parent)  # for its children
            self._enqueue = start(names.SPAN_ENQUEUE, self._within, SpanKind.PRODUCER, attributes)
        except Exception:
            self._acquire.end()  # without a trail nobody else would
            if first is not self._acquire:
                first.end()
            raise

    def ids(self) -> dict[str, str] | None:
        """Of the innermost span of the passage, for log events; None if it has none."""
        return ids_of(self._current)

    def exemplar(self) -> dict[str, str] | None:
        """As `ids`, of a span that can be looked up."""
        return self.ids() if self._current.trace_flags.sampled else None

    def carried(self) -> str:
        """What travels with the ticket: the `enqueue` span, which ends at once and so is visible
        while the call still waits."""
        return traceparent(self._enqueue.get_span_context())

    def held(self) -> str:
        """The context that the next holder of the slot links to: the `hold` span."""
        return "" if self._hold is None else traceparent(self._current)

    def enqueued(self, result: EnterResult) -> None:
        self._enqueue.set_attribute(names.AT_POSITION, result.position)
        self._enqueue.set_attribute(names.AT_DEPTH, result.depth)
        if result.holders:
            holders = tuple(holder.item_id for holder in result.holders)
            self._known[names.HOLDERS] = holders
            self._enqueue.set_attribute(names.HOLDERS, holders)
        now = time.time_ns()
        self._enqueue.end(now)
        if result.position:
            self._since = now + _GAP

    def waits(self, timeout: float | None) -> None:
        """The caller waits so many seconds at most."""
        if timeout is not None:
            self._known[names.TIMEOUT_SECONDS] = timeout

    def refused(self, reason: names.RefusalReason, depth: int) -> None:
        """End the spans of a call that was turned away, which is not an error."""
        self._enqueue.set_attribute(names.AT_DEPTH, depth)
        self._enqueue.end()
        self._end_acquire(reason, 0.0, None, time.time_ns(), is_end=True)

    def granted(self, waited: float, grant: Grant) -> None:
        """Start `hold` and make it the current span of the caller's body; `finish_wait` follows."""
        now = time.time_ns()
        self._ended = (now, waited, grant.released_by)
        attributes = {
            **self._attributes,
            names.FENCING_TOKEN: grant.fencing_token,
            names.WAITED_SECONDS: round(waited, 3),
        }
        kind, began = SpanKind.CONSUMER, now + _GAP
        self._hold = hold = self._start(names.SPAN_HOLD, self._parent, kind, attributes, (), began)
        self._current = hold.get_span_context()
        self._outer = CurrentHold(hold, without_ended_holds(otel_context.get_current()))

    def finish_wait(self) -> None:
        """End the spans of a wait that ended with a grant, if that has not been done yet."""
        ended, self._ended = self._ended, None
        if ended is not None:
            now, waited, released_by = ended
            self._end_wait("granted", waited, None, now, released_by)

    def end_wait(self, waited: float, outcome: names.WaitOutcome, error: BaseException | None) -> None:
        """End the spans of a wait that ended otherwise."""
        failure: BaseException | str | None = None
        if outcome == "timeout":
            failure = outcome  # and not the backend's TimeoutError: the caller gets another
        elif outcome != "cancelled":
            failure = outcome if error is None else error
        self._end_wait(outcome, waited, failure, time.time_ns(), None)

    def _end_wait(
        self,
        outcome: names.WaitOutcome,
        waited: float,
        failure: BaseException | str | None,
        now: int,
        released_by: CallRef | None,
    ) -> None:
        if self._enqueue.is_recording():
            self._enqueue.end(now)  # entering failed before it was answered
        since, self._since = self._since, 0
        now = max(now, since)
        try:
            if since:
                attributes = {**self._attributes, **self._known}
                attributes |= {names.OUTCOME: outcome, names.WAITED_SECONDS: round(waited, 3)}
                by = () if released_by is None else (released_by,)
                complete(
                    self._start, names.SPAN_WAIT, self._within, attributes, by, since, now, failure
                )
        finally:  # whatever becomes of `wait`: exemplars and log events name this one
            self._end_acquire(outcome, waited, failure, now, outcome != "granted")

    def _end_acquire(
        self, outcome: str, waited: float, failure: BaseException | str | None, now: int, is_end: bool
    ) -> None:
        self._acquire.set_attribute(names.OUTCOME, outcome)
        self._acquire.set_attribute(names.WAITED_SECONDS, round(waited, 3))
        if failure is not None:
            fail(self._acquire, failure)
        self._acquire.end(now)
        if is_end and self._slot is not None:
            self._slot.set_attribute(names.OUTCOME, outcome)
            self._slot.end(now)

    def lost(self, event: str, reason: str) -> None:
        if self._hold is not None:
            self._hold.add_event(event, {"reason": reason})

    def leave_context(self) -> None:
        """Make current again what was before the body."""
        outer, self._outer = self._outer, None
        if outer is not None:
            outer.leave()

    def end_hold(self, outcome: names.HoldOutcome, error: BaseException | None) -> None:
        """End `hold`; `release` begins."""
        self.finish_wait()
        if self._hold is None:
            return
        now = time.time_ns()
        self._since = now + _GAP
        self._hold.set_attribute(names.OUTCOME, outcome)
        if self._slot is not None:
            self._slot.set_attribute(names.OUTCOME, outcome)
        if outcome != "released":
            fail(self._hold, outcome if error is None else error)
        self._hold.end(now)

    def end_release(
        self, granted_to: Sequence[CallRef], error: BaseException | None, *, confirmed: bool
    ) -> None:
        since, self._since = self._since, 0
        now = max(time.time_ns(), since)
        try:
            if since:
                attributes = dict(self._attributes)
                if not confirmed:
                    attributes[names.OUTCOME] = "unconfirmed"
                failure = error if isinstance(error, Exception) else None
                to = granted_to
                complete(
                    self._start, names.SPAN_RELEASE, self._parent, attributes, to, since, now, failure
                )
        finally:
            if self._hold is not None and self._slot is not None:
                self._slot.end(now)
