"""`QueueSeries`: the metrics of one queue label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from genesis.backends.protocol import State
from genesis.observability import names
from genesis.observability.histogram import appender

if TYPE_CHECKING:
    from genesis.observability.metrics import Instruments

# Outcomes whose quantiles are queried. Their buckets must exist before the first observation: otherwise
# it would increase only the last bucket, and look like a wait beyond all bounds.
_ALL_BUCKETS = ("granted", "timeout", "cancelled", "released")


class QueueSeries:
    """The children of one `queue` label, and this process' calls under it.

    Attributes:
        calls: the recorders of the calls that wait or hold. Adding and removing is atomic, with and
            without the GIL: event loops of several threads can share this object, and the garbage
            collector might close a call while another is being counted.
        idle_since: the time of the first scrape that found no call here.
        gauges: in multiprocess mode the children of `waiting` and `holding`, which `move` must update.
        append_position: observes the position on entering, as the others without sorting, see
            `appender`.
    """

    def __init__(self, instruments: Instruments, label: str) -> None:
        self.label = label
        self.reset()
        self._instruments = instruments
        self.gauges: tuple[Any, Any] | None = None
        if instruments.in_files:
            self.gauges = instruments.waiting.labels(label), instruments.holding.labels(label)
            for gauge in self.gauges:
                gauge.set(0)  # a killed process with the same pid might have left a value
            instruments.hold.labels(label, "lost")  # an alert counts its first one
        else:
            for family, outcomes in (
                (instruments.wait, names.WaitOutcome),
                (instruments.hold, names.HoldOutcome),
            ):
                for outcome in get_args(outcomes):
                    family.labels(label, outcome, all_buckets=outcome in _ALL_BUCKETS)
        self.append_position = appender(instruments.position.labels(label))
        self.append_granted = appender(instruments.wait.labels(label, "granted"))
        self.append_released = appender(instruments.hold.labels(label, "released"))
        for state in get_args(State):
            instruments.reclaimed.labels(label, state)
        for reason in get_args(names.RefusalReason):
            instruments.refused.labels(label, reason)
        instruments.disagreements.labels(label)

    def reset(self) -> None:
        self.calls: set[Any] = set()
        self.idle_since: float | None = None

    @property
    def waiting(self) -> int:
        return sum(call.waiting for call in list(self.calls))

    @property
    def holding(self) -> int:
        return sum(call.holding for call in list(self.calls))

    def move(self, waiting: int, holding: int) -> None:
        """Update the gauges, in multiprocess mode."""
        if self.gauges is not None:
            self.gauges[0].inc(waiting)
            self.gauges[1].inc(holding)

    def waited(self, outcome: str, seconds: float, exemplar: dict[str, str] | None) -> None:
        self._instruments.wait.labels(self.label, outcome).observe(seconds, exemplar)

    def held(self, outcome: str, seconds: float, exemplar: dict[str, str] | None) -> None:
        self._instruments.hold.labels(self.label, outcome).observe(seconds, exemplar)

    def not_granted(
        self, call: Any, outcome: str, waited: float, exemplar: dict[str, str] | None
    ) -> None:
        """A wait ended without a slot."""
        self.calls.discard(call)
        self.move(-1, 0)
        self.waited(outcome, waited, exemplar)

    def refused(self, call: Any, reason: str) -> None:
        """A call was refused, and its wait is not observed."""
        self.calls.discard(call)
        self.move(-1, 0)
        self._instruments.refused.labels(self.label, reason).inc()
