"""Spans. Only the OpenTelemetry API is needed, not the SDK.

`CallSpans` holds the spans of one call, in the caller's trace. Without a caller's trace, a new trace
starts with `queue.slot`. If the first span is not recorded, no other span is created: it would not be
recorded either, and would cost as much as the queue itself.

Starting a span costs about as much as a passage through the queue, and setting an attribute later costs
more than passing it at the start. Only spans that are needed at once are therefore started at once:
parents, and `queue.enqueue`, which must be visible while the call waits. All others are created when
they end, with explicit start times and all attributes. Each span ends before the next one begins;
otherwise trace viewers would drop one of two overlapping spans from the critical path.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind

from genesis.backends.protocol import CallRef, EnterRequest, EnterResult, Grant, QueueBackend, Reclaimed
from genesis.observability import names
from genesis.observability.current import Hold, current_variable, without_holds
from genesis.observability.span_context import complete, context_of, end, ids_of, traceparent

_GAP = 1_000  # ns between two consecutive spans; trace viewers have this resolution


class Tracing:
    """Starts the spans of one backend's queues.

    Args:
        provider: a tracer provider; None uses the process' global provider, even if it is set later.
        version: the version of this library.
        backend: the observed backend.
    """

    def __init__(
        self, provider: trace.TracerProvider | None, version: str, backend: QueueBackend
    ) -> None:
        self._provider = provider
        self.next_look = -math.inf  # by the telemetry clock: there is no SDK until then
        self.start_span = trace.get_tracer("genesis", version, tracer_provider=provider).start_span
        self.backend = backend
        self.current = current_variable()

    def attributes(self, queue_id: str, item_id: str) -> dict[str, Any]:
        """The attributes of every span."""
        return {
            names.ITEM_ID: item_id,
            names.QUEUE_ID: queue_id,
            names.INSTANCE_ID: self.backend.instance_id,  # changes after a fork
            names.BACKEND: self.backend.name,
        }

    def inspection(self, operation: str, queue_id: str, item_id: str) -> Span | None:
        """The span of an operation that is no step of a call; None outside a recording span."""
        if operation == "ping" or not trace.get_current_span().is_recording():
            return None
        attributes = self.attributes(queue_id, item_id)
        attributes = {name: value for name, value in attributes.items() if value}
        return self.start_span(names.SPAN_INSPECTION + operation, None, SpanKind.CLIENT, attributes)

    def reclaimed(self, event: Reclaimed) -> None:
        """Record the end of a call whose instance is dead, in the call's own trace."""
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

    def start(self, entry: EnterRequest, now: float) -> tuple[CallSpans | None, Hold | None]:
        """Start the spans of a call, if they are recorded, and otherwise the context of its body.

        Both are None while the application has no SDK. The SDK is looked up once a second: an
        application might install it after creating its queues, and each lookup costs as much as an
        operation of the queue.
        """
        if self._provider is None:
            provider = trace.get_tracer_provider()
            if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
                self.next_look = now + 1.0
                return None, None
            self._provider = provider
        parent = self.current.get()
        has_parent = False
        if parent:  # usually empty in a worker
            parent = without_holds(parent)
            has_parent = trace.get_current_span(parent).get_span_context().is_valid
        attributes = {  # as `attributes`, inlined because every call runs this
            names.ITEM_ID: entry.item_id,
            names.QUEUE_ID: entry.queue_id,
            names.INSTANCE_ID: self.backend.instance_id,
            names.BACKEND: self.backend.name,
        }
        name = names.SPAN_ACQUIRE if has_parent else names.SPAN_SLOT
        first = self.start_span(name, parent, SpanKind.INTERNAL, attributes)
        if first.is_recording():
            return CallSpans(self, entry, attributes, first, parent, has_parent), None
        # The decision made here also applies to the body's spans. One that the caller's span made
        # already applies: that span stays current, even if it is that of a hold that ends meanwhile.
        return None, Hold(first, self.current, trace.get_current_span(parent) if has_parent else first)


class CallSpans:
    """The recorded spans of one call. Errors of the tracer propagate from every method."""

    def __init__(
        self,
        tracing: Tracing,
        entry: EnterRequest,
        attributes: dict[str, Any],
        first: Span,
        parent: Context,
        has_parent: bool,
    ) -> None:
        self._start = start = tracing.start_span
        self._current = tracing.current
        self._attributes = attributes  # of every span
        self._slot = None if has_parent else first
        # The parent of `acquire`, `hold` and `release`.
        self._parent = parent if has_parent else trace.set_span_in_context(first, parent)
        self._hold: Span | None = None
        self._lost: tuple[str, dict[str, str]] | None = None  # an event of `hold`
        self._since = 0  # the start of `wait` or `release` in ns; 0 while neither runs
        self._finish: Callable[[], None] | None = None  # ends the spans of a wait that was granted
        self._known: dict[str, Any] = {}  # further attributes of `wait`
        self._acquire = first
        try:
            if not has_parent:
                self._acquire = start(names.SPAN_ACQUIRE, self._parent, SpanKind.INTERNAL, attributes)
            if entry.limit is not None:
                self._acquire.set_attribute(names.AT_LIMIT, entry.limit)
            if entry.head_start:
                self._acquire.set_attribute(names.HEAD_START, entry.head_start)
            if entry.timeout == 0:
                self._acquire.set_attribute(names.TIMEOUT_SECONDS, 0.0)
            elif entry.timeout is not None:
                self._known[names.TIMEOUT_SECONDS] = round(entry.timeout, 3)
            self._within = trace.set_span_in_context(self._acquire, parent)  # for its children
            self._enqueue = start(names.SPAN_ENQUEUE, self._within, SpanKind.PRODUCER, attributes)
            self._last = time.time_ns()  # the latest time of these spans
        except Exception:
            self._acquire.end()  # the caller has no object on which to end it
            if first is not self._acquire:
                first.end()
            raise

    def _now(self) -> int:
        """The time in ns. The clock might be set back, but every span ends after it begins."""
        self._last = now = max(time.time_ns(), self._last + 1)
        return now

    def ids(self) -> dict[str, str] | None:
        """The ids of `hold`, before it of `acquire`, for log events; None if it has none."""
        return ids_of((self._hold or self._acquire).get_span_context())

    def exemplar(self) -> dict[str, str] | None:
        """As `ids`, but None if the span is not sampled."""
        context = (self._hold or self._acquire).get_span_context()
        return ids_of(context) if context.trace_flags.sampled else None

    def context(self) -> str:
        """The `traceparent` stored with the ticket: that of `hold`, to which the next holder of the
        slot links, and before it that of `enqueue`, which is visible while the call waits."""
        return traceparent((self._hold or self._enqueue).get_span_context())

    def enqueued(self, result: EnterResult) -> None:
        self._enqueue.set_attribute(names.AT_POSITION, result.position)
        self._enqueue.set_attribute(names.AT_DEPTH, result.depth)
        if result.holders:
            holders = tuple(holder.item_id for holder in result.holders)
            self._known[names.HOLDERS] = holders
            self._enqueue.set_attribute(names.HOLDERS, holders)
        now = self._now()
        self._enqueue.end(now)
        if result.position:
            self._since = self._last = now + _GAP

    def refused(self, reason: names.RefusalReason, depth: int | None) -> None:
        """End the spans of a refused call. A refusal is not an error."""
        if depth is not None:
            self._enqueue.set_attribute(names.AT_DEPTH, depth)
        self._end_wait(reason, 0.0, None, self._now(), None)

    def granted(self, waited: float, grant: Grant) -> Hold:
        """Start `hold`. Returns the context of the body. Call `finish_wait` afterwards."""
        now = self._now()
        self._finish = partial(self._end_wait, "granted", waited, None, now, grant.released_by)
        attributes = {
            **self._attributes,
            names.FENCING_TOKEN: grant.fencing_token,
            names.WAITED_SECONDS: round(waited, 3),
        }
        self._last = began = now + _GAP
        kind = SpanKind.CONSUMER
        self._hold = hold = self._start(names.SPAN_HOLD, self._parent, kind, attributes, (), began)
        if self._lost is not None:  # the slot was lost before its task woke up
            hold.add_event(*self._lost)
        return Hold(hold, self._current, hold)

    def finish_wait(self) -> None:
        """End the spans of a wait that ended with a grant, unless that was done already."""
        finish, self._finish = self._finish, None
        if finish is not None:
            finish()

    def not_granted(
        self, outcome: names.WaitOutcome, waited: float, error: BaseException | None
    ) -> None:
        """End the spans of a wait that ended without a grant."""
        failure: BaseException | str | None = None
        if outcome == "timeout":
            failure = outcome  # not the backend's TimeoutError: the caller gets QueueTimeoutError
        elif outcome != "cancelled":
            failure = outcome if error is None else error
        self._end_wait(outcome, waited, failure, self._now(), None)

    def _end_wait(
        self,
        outcome: str,
        waited: float,
        failure: BaseException | str | None,
        now: int,
        released_by: CallRef | None,
    ) -> None:
        if self._enqueue.is_recording():
            self._enqueue.end(now)  # refused, or `enter` failed before the reply
        since, self._since = self._since, 0
        ending: dict[str, Any] = {names.OUTCOME: outcome, names.WAITED_SECONDS: round(waited, 3)}
        try:
            if since:
                attributes = {**self._attributes, **self._known, **ending}
                by = () if released_by is None else (released_by,)
                complete(
                    self._start, names.SPAN_WAIT, self._within, attributes, by, since, now, failure
                )
        finally:  # even if `wait` fails: exemplars and log events refer to `acquire`
            self._acquire.set_attributes(ending)
            end(self._acquire, failure, now)
            if outcome != "granted" and self._slot is not None:
                self._slot.set_attribute(names.OUTCOME, outcome)
                self._slot.end(now)

    def lost(self, event: str, reason: str) -> None:
        self._lost = event, {"reason": reason}
        if self._hold is not None:
            self._hold.add_event(*self._lost)

    def end_hold(self, outcome: names.HoldOutcome, error: BaseException | None) -> None:
        """End `hold`, and start `release`."""
        self.finish_wait()
        if self._hold is None:
            return
        now = self._now()
        self._since = self._last = now + _GAP
        self._hold.set_attribute(names.OUTCOME, outcome)
        if self._slot is not None:
            self._slot.set_attribute(names.OUTCOME, outcome)
        failure = outcome if error is None else error
        end(self._hold, None if outcome == "released" else failure, now)

    def end_release(
        self, granted_to: Sequence[CallRef], error: BaseException | None, *, confirmed: bool
    ) -> None:
        since, self._since = self._since, 0
        now = self._now()
        try:
            if since:
                attributes = dict(self._attributes)
                if not confirmed:
                    attributes[names.OUTCOME] = "unconfirmed"
                failure = error if isinstance(error, Exception) else None
                name, parent = names.SPAN_RELEASE, self._parent
                complete(self._start, name, parent, attributes, granted_to, since, now, failure)
        finally:
            if self._hold is not None and self._slot is not None:
                self._slot.end(now)
