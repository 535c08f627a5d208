"""`CallRecorder`: the telemetry of one call, step by step, from entering to leaving."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, Literal, TypeVar

from genesis.backends.protocol import CallRef, EnterRequest, EnterResult, Grant, new_tuple
from genesis.observability import names
from genesis.observability.current import Hold
from genesis.observability.logs import ERROR, INFO, WARNING
from genesis.observability.metrics import QueueSeries
from genesis.observability.spans import CallSpans, Tracing, UnrecordedSpans
from genesis.observability.telemetry import Telemetry

__all__ = ["CallRecorder"]

T = TypeVar("T")

_WAIT_EVENTS: dict[names.WaitOutcome, tuple[names.LogEvent, int]] = {
    "timeout": ("timeout", WARNING),
    "cancelled": ("cancelled", INFO),
    "evicted": ("evicted", WARNING),
    "error": ("error", ERROR),
}


class CallRecorder:
    """Records the metrics, spans and log events of one call.

    Every public method is one step of the call and never raises. The sinks are independent: if a tracer
    raises, the metrics are still counted. Each ticket gets exactly one wait observation, however it
    ends, and a refused call gets none: the first one sets `waiting` to False, which prevents another.
    """

    __slots__ = (
        "_entry",
        "_info",
        "_instance_id",
        "_lost",
        "_series",
        "_telemetry",
        "_unrecorded",
        "began",
        "holding",
        "recorded",
        "waiting",
    )

    def __init__(
        self, telemetry: Telemetry, tracing: Tracing, instance_id: str, entry: EnterRequest
    ) -> None:
        self._telemetry = telemetry
        self._instance_id = instance_id
        self._entry = entry
        self.waiting = True
        self.holding = False
        self._lost: Literal["lost", "evicted"] | None = None
        self.began = began = telemetry.clock()  # the start of the wait, later of the hold
        self.recorded: CallSpans | None = None  # the spans, if they are recorded
        self._unrecorded: UnrecordedSpans | Hold | None = None  # if they are not
        try:
            if began >= tracing.next_look:
                spans = tracing.call_spans(entry, began)
                if isinstance(spans, CallSpans):
                    self.recorded = spans
                else:
                    self._unrecorded = spans
        except Exception:
            telemetry.failed("traces")
        try:
            self._info = telemetry.log.enabled(INFO)  # checked once per call
        except Exception:
            self._info = False
            telemetry.failed("logs")
        series: QueueSeries | None = None
        try:
            series = telemetry.series(entry.queue_id)
            series.entered()
        except Exception:
            telemetry.failed("metrics")
        self._series = series  # kept even if `entered` raised: it might have counted this call

    def carried_context(self) -> str:
        """The `traceparent` stored with the ticket; the call that frees its slot links to it."""
        return "" if self.recorded is None else self._traced(self.recorded.carried) or ""

    def held_context(self) -> str:
        """The `traceparent` of the hold; the next holder of the slot links to it."""
        return "" if self.recorded is None else self._traced(self.recorded.held) or ""

    def enqueued(self, result: EnterResult, observe: Callable[[float], None], seconds: float) -> None:
        """The backend has replied: the call was granted at once, or it waits.

        Args:
            result: the reply.
            observe: observes the operation, if the call was granted at once.
            seconds: the duration of the operation.
        """
        try:
            if result.grant is not None:
                observe(seconds)
                if self._series is not None:
                    self._series.append_position(result.position)
            elif self._series is not None:
                self._series.position.observe(result.position)
        except Exception:
            self._telemetry.failed("metrics")
        if self.recorded is not None:
            self._traced(self.recorded.enqueued, result)
        if self._info:
            self._log(INFO, "enqueued", position=result.position, depth=result.depth)

    def waits(self, timeout: float) -> None:
        """The wait begins; `timeout` in seconds from entering."""
        if self.recorded is not None:
            self._traced(self.recorded.waits, timeout)

    def granted(self, grant: Grant, now: float, *, at_once: bool) -> Grant:
        """The slot is held from now on. Returns the grant with `waited` set."""
        waited = 0.0 if at_once else now - self.began
        if grant.waited != waited:
            grant = new_tuple(Grant, (grant.fencing_token, grant.released_by, waited))
        self.waiting = False
        self.holding = True
        self.began = now
        try:
            if self._series is not None:
                exemplar = None if self.recorded is None else self._exemplar()
                self._series.granted(waited, exemplar)
        except Exception:
            self._telemetry.failed("metrics")
        if self.recorded is not None:
            self._traced(self.recorded.granted, waited, grant)
            self._traced(self.recorded.finish_wait if at_once else self._finish_wait_soon)
        elif self._unrecorded is not None:
            try:
                self._unrecorded.begin_hold()
            except Exception:
                self._telemetry.failed("traces")
        if self._info:
            self._log(INFO, "granted", waited=waited, fencing_token=grant.fencing_token)
        return grant

    def refused(self, reason: names.RefusalReason, depth: int = 0) -> None:
        """The call was refused. It was never in the line, so no wait is observed."""
        self.waiting = False
        if self._series is not None:
            self._telemetry.guarded("metrics", self._series.refused, reason)
        if self.recorded is not None:
            self._traced(self.recorded.refused, reason, depth)
        if self._info:
            self._log(INFO, "refused", reason=reason, depth=depth)

    def not_granted(self, outcome: names.WaitOutcome, error: BaseException | None) -> None:
        """The wait ended without a slot. Later calls have no effect."""
        if not self.waiting:
            return
        waited = self._telemetry.clock() - self.began
        self.waiting = False
        if self._series is not None:
            exemplar = self._exemplar()
            self._telemetry.guarded("metrics", self._series.not_granted, outcome, waited, exemplar)
        if self.recorded is not None:
            self._traced(self.recorded.end_wait, waited, outcome, error)
        event, level = _WAIT_EVENTS[outcome]
        self._log(level, event, error if outcome == "error" else None, waited=waited)

    def slot_lost(self, reason: str) -> None:
        """The slot was lost while the body runs. Later calls have no effect."""
        if self._lost is not None:
            return
        lost: Literal["lost", "evicted"] = "evicted" if reason == "evicted" else "lost"
        self._lost = lost
        self._log(WARNING if lost == "evicted" else ERROR, lost, reason=reason)
        if self.recorded is not None:
            self._traced(self.recorded.lost, lost, reason)

    def left(self, error: BaseException | None, now: float) -> None:
        """The ticket was given back: the hold has ended, or the call was cancelled before `wait`.

        Args:
            error: the exception of the body.
            now: the time of leaving, by the clock.
        """
        if not self.holding:
            self.not_granted("cancelled", None)  # no effect if the wait has ended already
            return
        outcome: names.HoldOutcome = self._lost or ("released" if error is None else "error")
        held = now - self.began
        self.holding = False
        spans = self.recorded or self._unrecorded
        if spans is not None:
            try:
                spans.leave_context()
            except Exception:
                self._telemetry.failed("traces")
        try:
            if self._series is not None:
                exemplar = None if self.recorded is None else self._exemplar()
                self._series.hold_ended(outcome, held, exemplar)
        except Exception:
            self._telemetry.failed("metrics")
        if self._info:
            self._log(INFO, "released", outcome=outcome, held=held)
        if self.recorded is not None:
            self._traced(self.recorded.end_hold, outcome, error)

    def released(
        self, granted_to: Sequence[CallRef], error: BaseException | None, *, confirmed: bool = True
    ) -> None:
        """The backend has processed the `leave`, or it failed."""
        if self.recorded is not None:
            self._traced(self.recorded.end_release, granted_to, error, confirmed=confirmed)

    def _finish_wait_soon(self) -> None:
        """Run the body first: recording its wait costs more than the wake-up itself."""
        spans = self.recorded
        assert spans is not None
        loop = asyncio.get_running_loop()
        loop.call_soon(self._traced, spans.finish_wait, context=Context())

    def _traced(self, step: Callable[..., T], *args: Any, **options: Any) -> T | None:
        try:  # inlined instead of `guarded`, because every call runs this several times
            return step(*args, **options)
        except Exception:
            self._telemetry.failed("traces")
            return None

    def _exemplar(self) -> dict[str, str] | None:
        return None if self.recorded is None else self._traced(self.recorded.exemplar)

    def _log(
        self, level: int, event: names.LogEvent, error: BaseException | None = None, **fields: Any
    ) -> None:
        if error is not None:
            fields["error"] = self._telemetry.guarded("logs", str, error)
        spans = self.recorded or self._unrecorded
        if spans is not None and (ids := self._traced(spans.ids)) is not None:
            fields |= ids
        queue_id, item_id = self._entry[:2]
        about = {"queue_id": queue_id, "item_id": item_id, "instance_id": self._instance_id}
        self._telemetry.event(level, event, {**about, **fields})
