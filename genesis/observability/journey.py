"""What is reported of one passage, from entering to the end; the only place that knows the sequence.

Exactly one wait observation an item, whatever its end: `end_wait` and `end_hold` each act once, the
first call wins, and both can be called in any state.
"""

from __future__ import annotations

from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind

from genesis.backends.protocol import Admission, Departure, Entry, Grant, Party
from genesis.observability import names
from genesis.observability.logs import ERROR, INFO, WARNING
from genesis.observability.metrics import QueueSeries
from genesis.observability.telemetry import Telemetry
from genesis.observability.traces import Tracing, fail, link_to, traceparent

__all__ = ["Journey"]

_WAIT_EVENTS: dict[names.WaitOutcome, tuple[names.LogEvent, int]] = {
    "timeout": ("timeout", WARNING),
    "cancelled": ("cancelled", INFO),
    "evicted": ("evicted", WARNING),
    "error": ("error", ERROR),
}


class Journey:
    """One item's metrics, spans and log events.

    Every public method is one step of the passage, never raises, and counts a sink's failure. The
    sinks are independent: a tracer that raises does not keep the metrics from being counted.
    """

    __slots__ = (
        "_acquire",
        "_began",
        "_enqueue",
        "_hold",
        "_instance_id",
        "_parent",
        "_previous",
        "_series",
        "_telemetry",
        "_token",
        "_tracing",
        "_wait",
        "depth",
        "entry",
        "holding",
        "lost",
        "waiting",
    )

    def __init__(
        self,
        telemetry: Telemetry,
        tracing: Tracing,
        instance_id: str,
        series: QueueSeries | None,
        entry: Entry,
    ) -> None:
        self._telemetry = telemetry
        self._tracing = tracing
        self._instance_id = instance_id
        self._series = series
        self.entry = entry
        self.waiting = True  # until its one wait observation
        self.holding = False
        self.lost: names.HoldOutcome | None = None
        self.depth = 0
        self._began = telemetry.clock()  # of the wait, then of the hold
        self._acquire: Span = trace.INVALID_SPAN
        self._enqueue: Span = trace.INVALID_SPAN
        self._wait: Span = trace.INVALID_SPAN
        self._hold: Span = trace.INVALID_SPAN
        self._parent: Context | None = None
        self._previous: Context | None = None
        self._token: Any = None
        try:
            self._start_acquire()
        except Exception:
            telemetry.failed("traces")
        try:
            if series is not None:
                series.waiting.inc()
        except Exception:
            telemetry.failed("metrics")

    @property
    def context(self) -> str:
        """`traceparent` that travels with the ticket: the `enqueue` span, which ends at once."""
        try:
            return traceparent(self._enqueue)
        except Exception:
            self._telemetry.failed("traces")
            return ""

    @property
    def hold_context(self) -> str:
        """`traceparent` for whoever gets the slot after this hold."""
        try:
            return traceparent(self._hold)
        except Exception:
            self._telemetry.failed("traces")
            return ""

    def enqueued(self, admission: Admission) -> None:
        """The backend has answered: granted, waiting or refused."""
        try:
            if self._series is not None:
                self._series.position.observe(admission.position)
        except Exception:
            self._telemetry.failed("metrics")
        try:
            if self._enqueue.is_recording():
                self._enqueue.set_attribute(names.AT_POSITION, admission.position)
                self._enqueue.set_attribute(names.AT_DEPTH, admission.depth)
            self._enqueue.end()
            if admission.position and self._traced:
                self._wait = self._span(
                    names.SPAN_WAIT, parent=trace.set_span_in_context(self._acquire)
                )
        except Exception:
            self._telemetry.failed("traces")
        self._log(INFO, "enqueued", self._acquire, position=admission.position, depth=admission.depth)

    def granted(self, grant: Grant, *, at_once: bool) -> Grant:
        """The slot is held from here on; returns the grant with its wait."""
        now = self._telemetry.clock()
        waited = 0.0 if at_once else max(0.0, now - self._began)
        grant = grant._replace(waited=waited)
        self._end_wait(grant.waited, "granted", None, grant.released_by)
        self._began = now
        self.holding = True
        try:
            if self._series is not None:
                self._series.holding.inc()
        except Exception:
            self._telemetry.failed("metrics")
        try:
            self._start_hold(grant)
        except Exception:
            self._telemetry.failed("traces")
        self._log(INFO, "granted", self._hold, waited=waited, fencing_token=grant.fencing_token)
        return grant

    def not_granted(self, outcome: names.WaitOutcome, error: BaseException | None) -> None:
        """The wait ended without a slot. Only the first ending counts."""
        if not self.waiting:
            return
        waited = max(0.0, self._telemetry.clock() - self._began)
        if outcome == "timeout" and self.entry.only_if_free:
            waited = 0.0
        span = self._acquire
        self._end_wait(waited, outcome, error, None)
        event, level = _WAIT_EVENTS[outcome]
        cause = {} if outcome == "cancelled" or error is None else {"error": str(error)}
        self._log(level, event, span, waited=waited, **cause)

    def slot_lost(self, reason: str) -> None:
        """The slot is gone while its body runs."""
        self.lost = "evicted" if reason == "evicted" else "lost"
        level = WARNING if reason == "evicted" else ERROR
        self._log(level, "evicted" if reason == "evicted" else "lost", self._hold, reason=reason)

    def leaving(self, error: BaseException | None) -> Span:
        """The body has ended; returns the `release` span, to be ended by `released`."""
        outcome: names.HoldOutcome = self.lost or ("released" if error is None else "error")
        held = max(0.0, self._telemetry.clock() - self._began)
        self.holding = False
        try:
            if self._series is not None:
                self._series.holding.dec()
                _observe(self._series.hold(outcome), held, self._hold)
                self._series.leave()
        except Exception:
            self._telemetry.failed("metrics")
        try:
            return self._end_hold(outcome, error)
        except Exception:
            self._telemetry.failed("traces")
            return trace.INVALID_SPAN
        finally:
            self._log(INFO, "released", self._hold, outcome=outcome, held=held)

    def released(self, span: Span, departure: Departure | None, error: BaseException | None) -> None:
        """The backend has taken the slot back, or the attempt failed."""
        try:
            if span.is_recording():
                for party in departure.granted_to if departure is not None else ():
                    for link in link_to(party, names.LINK_GRANTED_TO):
                        span.add_link(link.context, link.attributes)
                if error is not None:
                    fail(span, error)
            span.end()
        except Exception:
            self._telemetry.failed("traces")

    @property
    def _traced(self) -> bool:
        return self._acquire.get_span_context().is_valid

    def _span(
        self, name: str, kind: SpanKind = SpanKind.INTERNAL, parent: Context | None = None
    ) -> Span:
        return self._tracing.start(name, self.entry.queue_id, self.entry.item_id, kind, parent)

    def _start_acquire(self) -> None:
        self._parent = otel_context.get_current()
        self._acquire = self._span(names.SPAN_ACQUIRE, parent=self._parent)
        if self._traced:
            within = trace.set_span_in_context(self._acquire)
            self._enqueue = self._span(names.SPAN_ENQUEUE, SpanKind.PRODUCER, within)

    def _end_wait(
        self,
        waited: float,
        outcome: names.WaitOutcome,
        error: BaseException | None,
        released_by: Party | None,
    ) -> None:
        self.waiting = False
        try:
            if self._series is not None:
                self._series.waiting.dec()
                _observe(self._series.wait(outcome), waited, self._acquire)
                if outcome != "granted":
                    self._series.leave()
        except Exception:
            self._telemetry.failed("metrics")
        try:
            if self._traced:
                self._end_wait_spans(waited, outcome, error, released_by)
        except Exception:
            self._telemetry.failed("traces")

    def _end_wait_spans(
        self,
        waited: float,
        outcome: names.WaitOutcome,
        error: BaseException | None,
        released_by: Party | None,
    ) -> None:
        self._enqueue.end()  # a second end is ignored; the first may never have come
        if released_by is not None and self._wait.is_recording():
            for link in link_to(released_by, names.LINK_RELEASED_BY):
                self._wait.add_link(link.context, link.attributes)
        for span in (self._wait, self._acquire):
            if span.is_recording():
                span.set_attribute(names.OUTCOME, outcome)
                span.set_attribute(names.WAITED_SECONDS, waited)
                if error is not None and outcome != "cancelled":
                    fail(span, error)
            span.end()

    def _start_hold(self, grant: Grant) -> None:
        if not self._traced:
            return
        self._hold = self._span(names.SPAN_HOLD, SpanKind.CONSUMER, self._parent)
        if self._hold.is_recording():
            self._hold.set_attribute(names.FENCING_TOKEN, grant.fencing_token)
            self._hold.set_attribute(names.WAITED_SECONDS, grant.waited)
        self._previous = otel_context.get_current()
        self._token = otel_context.attach(trace.set_span_in_context(self._hold, self._previous))

    def _end_hold(self, outcome: names.HoldOutcome, error: BaseException | None) -> Span:
        if not self._traced:
            return trace.INVALID_SPAN
        # Leave the context only if this task is still inside it: a body that is left in another task
        # than it was entered in has no token to give back there.
        if self._token is not None and trace.get_current_span() is self._hold:
            otel_context.detach(self._token)
        self._token = None
        if self._hold.is_recording():
            self._hold.set_attribute(names.OUTCOME, outcome)
            if error is not None:
                fail(self._hold, error)
            elif outcome in ("lost", "evicted"):
                self._hold.set_attribute(names.ERROR_TYPE, "SlotLostError")
                self._hold.set_status(trace.Status(trace.StatusCode.ERROR, outcome))
        self._hold.end()
        return self._span(names.SPAN_RELEASE, SpanKind.CLIENT, self._parent)

    def _log(self, level: int, event: names.LogEvent, span: Span, **fields: Any) -> None:
        log = self._telemetry.log
        try:
            if not log.enabled(level):
                return
            context = span.get_span_context()
            if context.is_valid:
                fields["trace_id"] = f"{context.trace_id:032x}"
                fields["span_id"] = f"{context.span_id:016x}"
            log.write(
                level,
                event,
                queue_id=self.entry.queue_id,
                item_id=self.entry.item_id,
                instance_id=self._instance_id,
                **fields,
            )
        except Exception:
            self._telemetry.failed("logs")


def _observe(histogram: Any, seconds: float, span: Span) -> None:
    context = span.get_span_context()
    if context.is_valid and context.trace_flags.sampled:
        exemplar = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
        histogram.observe(seconds, exemplar)
    else:
        histogram.observe(seconds)
