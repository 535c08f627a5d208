"""`CallRecorder`: the telemetry of one call, step by step, from entering to leaving."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, Literal, TypeVar

from genesis.backends.protocol import CallRef, EnterRequest, EnterResult, Grant, new_tuple
from genesis.exceptions import BackendUnavailableError, EvictedError
from genesis.observability import names
from genesis.observability.current import Hold
from genesis.observability.logs import ERROR, INFO, WARNING
from genesis.observability.series import QueueSeries
from genesis.observability.spans import CallSpans, Tracing
from genesis.observability.telemetry import Telemetry

T = TypeVar("T")

_WAIT_LEVELS = {"timeout": WARNING, "cancelled": INFO, "evicted": WARNING, "error": ERROR}


class CallRecorder:
    """Records the metrics, spans and log events of one call.

    Every public method is one step of the call and never raises. The sinks are independent: if a tracer
    raises, the metrics are still counted. Each ticket gets exactly one wait observation, however it
    ends, and a refused call gets none: the first one sets `waiting` to False, which prevents another.
    """

    __slots__ = (
        "_body",
        "_entry",
        "_info",
        "_lost",
        "_series",
        "_telemetry",
        "_tracing",
        "began",
        "holding",
        "spans",
        "waiting",
    )

    def __init__(self, telemetry: Telemetry, tracing: Tracing, entry: EnterRequest) -> None:
        self._telemetry = telemetry
        self._tracing = tracing
        self._entry = entry
        self.waiting = True
        self.holding = False
        self._lost: Literal["lost", "evicted"] | None = None
        self.began = began = telemetry.clock()  # the start of the wait, later of the hold
        self.spans: CallSpans | None = None  # if they are recorded
        self._body: Hold | None = None  # the context of the body
        try:
            if began >= tracing.next_look:
                self.spans, self._body = tracing.start(entry, began)
        except Exception:
            telemetry.failed("traces")
        try:
            self._info = telemetry.log.enabled(INFO)  # checked once per call
        except Exception:
            self._info = False
            telemetry.failed("logs")
        self._series: QueueSeries | None = None
        try:
            queue_id = entry.queue_id
            self._series = series = telemetry.known.get(queue_id) or telemetry.series(queue_id)
            series.calls.add(self)
            series.idle_since = None
            if series.gauges is not None:
                series.move(1, 0)
        except Exception:
            telemetry.failed("metrics")

    def context(self) -> str:
        """The `traceparent` of the call: that of its hold, and before that of `queue.enqueue`."""
        return "" if self.spans is None else self._traced(self.spans.context) or ""

    def entered(self, result: EnterResult, now: float, observe: Callable[[float], None]) -> EnterResult:
        """The backend has replied: the call was granted at once, or it waits, or it was refused.

        Args:
            result: the reply.
            now: the time of the reply, by the clock.
            observe: observes the duration of the operation, if the call was granted at once.

        Returns:
            The reply, with `Grant.waited` set.
        """
        grant = result.grant
        if grant is None and not result.position:
            self.refused("busy" if self._entry.timeout == 0 else "full", result.depth)
            return result
        try:
            if grant is not None:
                observe(now - self.began)
            if self._series is not None:
                self._series.append_position(result.position)
        except Exception:
            self._telemetry.failed("metrics")
        if self.spans is not None:
            self._traced(self.spans.enqueued, result)
        if self._info:
            self._log(INFO, "enqueued", position=result.position, depth=result.depth)
        if grant is not None and (granted := self.granted(grant, now, 0.0)) is not grant:
            return result._replace(grant=granted)
        return result

    def granted(self, grant: Grant, now: float, waited: float) -> Grant:
        """The slot is held from now on. Returns the grant with `waited` set."""
        if grant.waited != waited:
            grant = new_tuple(Grant, (grant.fencing_token, grant.released_by, waited))
        self.waiting = False
        self.holding = True
        self.began = now
        spans = self.spans
        try:
            if (series := self._series) is not None:
                if series.gauges is not None:
                    series.move(-1, 1)
                if spans is None:
                    series.append_granted(waited)
                else:
                    series.waited("granted", waited, self._exemplar())
        except Exception:
            self._telemetry.failed("metrics")
        if spans is not None:
            self._body = self._traced(spans.granted, waited, grant)
            self._traced(self._finish_wait_soon if waited else spans.finish_wait)
        if self._body is not None:
            try:
                self._body.begin_hold()
            except Exception:
                self._telemetry.failed("traces")
        if self._info:
            self._log(INFO, "granted", waited=waited, fencing_token=grant.fencing_token)
        return grant

    def refused(self, reason: names.RefusalReason, depth: int | None = None) -> None:
        """The call was refused. It was never in the line, so no wait is observed.

        Args:
            reason: why.
            depth: the number of waiters; None if the backend was not asked.
        """
        self.waiting = False
        if self._series is not None:
            self._telemetry.guarded("metrics", self._series.refused, self, reason)
        if self.spans is not None:
            self._traced(self.spans.refused, reason, depth)
        if self._info:
            known: dict[str, Any] = {} if depth is None else {"depth": depth}
            self._log(INFO, "refused", reason=reason, **known)

    def not_granted(self, outcome: names.WaitOutcome, error: BaseException | None) -> None:
        """The wait ended without a slot. Later calls have no effect."""
        if not self.waiting:
            return
        waited = self._telemetry.clock() - self.began
        self.waiting = False
        if self._series is not None:
            observe = self._series.not_granted
            self._telemetry.guarded("metrics", observe, self, outcome, waited, self._exemplar())
        if self.spans is not None:
            self._traced(self.spans.not_granted, outcome, waited, error)
        level: int = _WAIT_LEVELS[outcome]
        self._log(level, outcome, error if outcome == "error" else None, waited=waited)

    def slot_lost(self, reason: str) -> None:
        """The slot was lost while the body runs. Later calls have no effect."""
        if self._lost is not None:
            return
        lost: Literal["lost", "evicted"] = "evicted" if reason == "evicted" else "lost"
        self._lost = lost
        self._log(WARNING if lost == "evicted" else ERROR, lost, reason=reason)
        if self.spans is not None:
            self._traced(self.spans.lost, lost, reason)

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
        if self._body is not None:
            try:
                self._body.leave_context()
            except Exception:
                self._telemetry.failed("traces")
        spans = self.spans
        try:
            if (series := self._series) is not None:
                series.calls.discard(self)
                if series.gauges is not None:
                    series.move(0, -1)
                if spans is None and outcome == "released":
                    series.append_released(held)
                else:
                    series.held(outcome, held, self._exemplar())
        except Exception:
            self._telemetry.failed("metrics")
        if self._info:
            self._log(INFO, "released", outcome=outcome, held=held)
        if spans is not None:
            self._traced(spans.end_hold, outcome, error)

    def released(
        self, granted_to: Sequence[CallRef], error: BaseException | None, *, confirmed: bool = True
    ) -> None:
        """The backend has processed the `leave`, or it failed."""
        if self.spans is not None:
            self._traced(self.spans.end_release, granted_to, error, confirmed=confirmed)

    def _finish_wait_soon(self) -> None:
        """Run the body first: recording its wait costs more than the wake-up itself."""
        assert self.spans is not None
        loop = asyncio.get_running_loop()
        loop.call_soon(self._traced, self.spans.finish_wait, context=Context())

    def _traced(self, step: Callable[..., T], *args: Any, **options: Any) -> T | None:
        try:  # inlined instead of `guarded`, because every call runs this several times
            return step(*args, **options)
        except Exception:
            self._telemetry.failed("traces")
            return None

    def _exemplar(self) -> dict[str, str] | None:
        return None if self.spans is None else self._traced(self.spans.exemplar)

    def _log(
        self, level: int, event: names.LogEvent, error: BaseException | None = None, **fields: Any
    ) -> None:
        if error is not None:
            fields["error"] = self._telemetry.guarded("logs", str, error)
        spans = self.spans or self._body
        if spans is not None and (ids := self._traced(spans.ids)) is not None:
            fields |= ids
        queue_id, item_id = self._entry[:2]
        about = {
            "queue_id": queue_id,
            "item_id": item_id,
            "instance_id": self._tracing.backend.instance_id,
        }
        self._telemetry.event(level, event, {**about, **fields})


def wait_outcome(error: BaseException) -> Literal["evicted", "timeout", "error", "cancelled"]:
    """The outcome of a wait that ended with this error."""
    if isinstance(error, EvictedError):
        return "evicted"
    if isinstance(error, TimeoutError) and not isinstance(error, BackendUnavailableError):
        return "timeout"
    return "error" if isinstance(error, Exception) else "cancelled"
