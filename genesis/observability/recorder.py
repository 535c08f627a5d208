"""What is reported of one passage, from entering to the end; the only place that knows the sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from genesis.backends.protocol import CallRef, EnterRequest, EnterResult, Grant, new_tuple
from genesis.observability import names
from genesis.observability.logs import ERROR, INFO, WARNING
from genesis.observability.metrics import QueueSeries
from genesis.observability.spans import CallSpans, Tracing, UnrecordedSpans
from genesis.observability.telemetry import Telemetry

__all__ = ["CallRecorder"]

_WAIT_EVENTS: dict[names.WaitOutcome, tuple[names.LogEvent, int]] = {
    "timeout": ("timeout", WARNING),
    "cancelled": ("cancelled", INFO),
    "evicted": ("evicted", WARNING),
    "error": ("error", ERROR),
}


class CallRecorder:
    """One item's metrics, spans and log events.

    Every public method is one step of the passage and never raises. The sinks are independent: a tracer
    that raises does not keep the metrics from being counted. There is exactly one wait observation an
    item, whatever its end: `waiting` turns false with the first, and none is made after that.
    """

    __slots__ = (
        "_entry",
        "_info",
        "_instance_id",
        "_lost",
        "_series",
        "_telemetry",
        "_trail",
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
        self._lost: names.HoldOutcome | None = None
        self.began = began = telemetry.clock()  # the wait; then the hold
        self._trail: CallSpans | UnrecordedSpans | None = None
        self.recorded: CallSpans | None = None  # the trail, if its spans go anywhere
        try:
            if began >= tracing.next_look:
                self._trail = trail = tracing.trail(entry, began)
                if isinstance(trail, CallSpans):
                    self.recorded = trail
        except Exception:
            telemetry.failed("traces")
        try:
            self._info = telemetry.log.enabled(INFO)  # asked once a passage
        except Exception:
            self._info = False
            telemetry.failed("logs")
        series: QueueSeries | None = None
        try:
            series = telemetry.series(entry.queue_id)
            series.entered()
        except Exception:
            telemetry.failed("metrics")
        self._series = series  # also if it raised on entering: it counts this call already

    def carried_context(self) -> str:
        """What travels with the ticket, for the link of whoever will grant it."""
        return "" if self.recorded is None else self._text(self.recorded.carried)

    def held_context(self) -> str:
        """What is told to whoever gets the slot after this hold."""
        return "" if self.recorded is None else self._text(self.recorded.held)

    def enqueued(self, admission: EnterResult) -> None:
        """The backend has answered: granted at once, or waiting."""
        try:
            if (series := self._series) is not None:
                if admission.grant is not None:
                    series.note_position(admission.position)
                else:
                    series.position.observe(admission.position)
        except Exception:
            self._telemetry.failed("metrics")
        try:
            if self.recorded is not None:
                self.recorded.enqueued(admission)
        except Exception:
            self._telemetry.failed("traces")
        if self._info:
            self._log(INFO, "enqueued", position=admission.position, depth=admission.depth)

    def granted(self, grant: Grant, now: float, *, at_once: bool) -> Grant:
        """The slot is held from here on; returns the grant with its wait."""
        waited = 0.0 if at_once else now - self.began
        if grant.waited != waited:
            grant = new_tuple(Grant, (grant.fencing_token, grant.released_by, waited))
        self.waiting = False
        self.holding = True
        self.began = now
        try:
            if self._series is not None:
                exemplar = None if self.recorded is None else self._exemplar(self.recorded)
                self._series.granted(waited, exemplar)
        except Exception:
            self._telemetry.failed("metrics")
        if self.recorded is not None:
            self._end_trail_of_wait(self.recorded, waited, "granted", None, grant.released_by)
        try:
            if self._trail is not None:
                self._trail.begin_hold(grant)
        except Exception:
            self._telemetry.failed("traces")
        if self._info:
            self._log(INFO, "granted", waited=waited, fencing_token=grant.fencing_token)
        return grant

    def not_granted(self, outcome: names.WaitOutcome, error: BaseException | None) -> None:
        """The wait ended without a slot. Only the first ending counts."""
        if not self.waiting:
            return
        waited = self._telemetry.clock() - self.began
        self.waiting = False
        try:
            if self._series is not None:
                exemplar = None if self.recorded is None else self._exemplar(self.recorded)
                self._series.not_granted(outcome, waited, exemplar)
        except Exception:
            self._telemetry.failed("metrics")
        if self.recorded is not None:
            self._end_trail_of_wait(self.recorded, waited, outcome, error, None)
        event, level = _WAIT_EVENTS[outcome]
        self._log(level, event, error if outcome == "error" else None, waited=waited)

    def refused(self, reason: names.RefusalReason, depth: int = 0) -> None:
        """The call was turned away: it never was in the line, so there is no wait to observe."""
        self.waiting = False
        try:
            if self._series is not None:
                self._series.refused(reason)
        except Exception:
            self._telemetry.failed("metrics")
        try:
            if self.recorded is not None:
                self.recorded.refused(reason, depth)
        except Exception:
            self._telemetry.failed("traces")
        if self._info:
            self._log(INFO, "refused", reason=reason, depth=depth)

    def slot_lost(self, reason: str) -> None:
        """The slot is gone while its body runs. Only the first word of it counts."""
        if self._lost is not None:
            return
        if reason == "evicted":
            self._lost = "evicted"
            self._log(WARNING, "evicted", reason=reason)
        else:
            self._lost = "lost"
            self._log(ERROR, "lost", reason=reason)

    def left(self, error: BaseException | None, now: float) -> None:
        """The ticket was given back at `now`: the hold has ended, or a wait that never began.

        Args:
            error: what the body raised.
            now: when, by the clock.
        """
        if not self.holding:
            self.not_granted("cancelled", None)  # it never got as far as `wait`
            return
        outcome: names.HoldOutcome = self._lost or ("released" if error is None else "error")
        held = now - self.began
        self.holding = False
        try:
            if self._series is not None:
                exemplar = None if self.recorded is None else self._exemplar(self.recorded)
                self._series.hold_ended(outcome, held, exemplar)
        except Exception:
            self._telemetry.failed("metrics")
        if self._info:
            self._log(INFO, "released", outcome=outcome, held=held)
        try:
            if self._trail is not None:
                self._trail.end_hold(outcome, error)
        except Exception:
            self._telemetry.failed("traces")

    def released(
        self,
        granted_to: Sequence[CallRef],
        error: BaseException | None,
        *,
        confirmed: bool = True,
    ) -> None:
        """The backend has taken back what the ticket had, or the attempt failed."""
        try:
            if self.recorded is not None:
                self.recorded.end_release(granted_to, error, confirmed=confirmed)
        except Exception:
            self._telemetry.failed("traces")

    def _end_trail_of_wait(
        self,
        trail: CallSpans,
        waited: float,
        outcome: names.WaitOutcome,
        error: BaseException | None,
        released_by: CallRef | None,
    ) -> None:
        try:
            trail.end_wait(waited, outcome, error, released_by)
        except Exception:
            self._telemetry.failed("traces")

    def _exemplar(self, trail: CallSpans) -> dict[str, str] | None:
        try:
            return trail.exemplar()
        except Exception:
            self._telemetry.failed("traces")
            return None

    def _text(self, context: Callable[[], str]) -> str:
        try:
            return context()
        except Exception:
            self._telemetry.failed("traces")
            return ""

    def _log(
        self, level: int, event: names.LogEvent, error: BaseException | None = None, **fields: Any
    ) -> None:
        telemetry = self._telemetry
        try:
            if not telemetry.log.enabled(level):
                return
            if error is not None:
                fields["error"] = str(error)
            if self._trail is not None and (ids := self._trail.ids()) is not None:
                fields.update(ids)
            telemetry.log.write(
                level,
                event,
                queue_id=self._entry.queue_id,
                item_id=self._entry.item_id,
                instance_id=self._instance_id,
                **fields,
            )
        except Exception:
            telemetry.failed("logs")
