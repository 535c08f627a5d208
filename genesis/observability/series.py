"""`QueueSeries`: the metrics of one queue label."""

from __future__ import annotations

import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from genesis.backends.protocol import State
from genesis.observability import names
from genesis.observability.histogram import appender

if TYPE_CHECKING:
    from genesis.observability.metrics import Instruments

__all__ = ["QueueSeries"]

# Outcomes whose quantiles are queried. Their buckets must exist before the first observation: otherwise
# it would increase only the last bucket, and look like a wait beyond all bounds.
_ALL_BUCKETS = ("granted", "timeout", "cancelled", "released")


# With the GIL, `+=` on an attribute is safe here; a lock would cost more than everything else.
_FREE_THREADED = not getattr(sys, "_is_gil_enabled", lambda: True)()


class _Outcomes(dict[str, Any]):
    """The children of a histogram under one queue label, by outcome."""

    def __init__(self, histogram: Any, label: str) -> None:
        self.create = partial(histogram.labels, label)

    def __missing__(self, outcome: str) -> Any:
        child = self[outcome] = self.create(outcome)
        return child


class QueueSeries:
    """The children of one `queue` label, and the number of this process' calls under it.

    Attributes:
        position: observes the position on entering.
        append_position: the same without sorting, see `appender`.
    """

    def __init__(self, instruments: Instruments, label: str) -> None:
        self.label = label
        self.reset()
        self._instruments = instruments
        self._wait = _Outcomes(instruments.wait, label)
        self._hold = _Outcomes(instruments.hold, label)
        self._gauges: tuple[Any, Any] | None = None
        if instruments.in_files:
            waiting, holding = instruments.waiting.labels(label), instruments.holding.labels(label)
            waiting.set(0)  # a killed process with the same pid might have left a value
            holding.set(0)
            self._gauges = waiting, holding
        else:
            for children, outcomes in (
                (self._wait, names.WaitOutcome),
                (self._hold, names.HoldOutcome),
            ):
                for outcome in get_args(outcomes):
                    children[outcome] = children.create(outcome, all_buckets=outcome in _ALL_BUCKETS)
        self.position: Any = instruments.position.labels(label)
        self.append_position = appender(self.position)
        self._append_granted = appender(self._wait["granted"])
        self._append_released = appender(self._hold["released"])
        for state in get_args(State):
            instruments.reclaimed.labels(label, state)
        for reason in get_args(names.RefusalReason):
            instruments.refused.labels(label, reason)
        instruments.disagreements.labels(label)

    def reset(self) -> None:
        # Event loops of several threads can share this object. The lock is reentrant, because the
        # garbage collector might close a call, which is counted, while another is being counted.
        self._lock = threading.RLock()
        self.waiting = 0
        self.holding = 0
        self.idle_since: float | None = None  # the first scrape that found no call here

    def entered(self) -> None:
        """A call starts to wait."""
        if _FREE_THREADED:
            self._move(1, 0)
        else:
            self.waiting += 1
        self.idle_since = None
        if self._gauges is not None:
            self._gauges[0].inc()

    def granted(self, waited: float, exemplar: dict[str, str] | None) -> None:
        """A waiter becomes a holder."""
        if _FREE_THREADED:
            self._move(-1, 1)
        else:
            self.waiting -= 1
            self.holding += 1
        if self._gauges is not None:
            self._gauges[0].dec()
            self._gauges[1].inc()
        if exemplar is None:
            self._append_granted(waited)
        else:
            self._wait["granted"].observe(waited, exemplar)

    def not_granted(self, outcome: str, waited: float, exemplar: dict[str, str] | None) -> None:
        """A wait ended without a slot."""
        self._waits_no_more()
        self._wait[outcome].observe(waited, exemplar)

    def refused(self, reason: str) -> None:
        """A call was refused: it no longer counts as waiting, and its wait is not observed."""
        self._waits_no_more()
        self._instruments.refused.labels(self.label, reason).inc()

    def hold_ended(self, outcome: str, held: float, exemplar: dict[str, str] | None) -> None:
        """A hold ended."""
        if _FREE_THREADED:
            self._move(0, -1)
        else:
            self.holding -= 1
        if self._gauges is not None:
            self._gauges[1].dec()
        if exemplar is None and outcome == "released":
            self._append_released(held)
        else:
            self._hold[outcome].observe(held, exemplar)

    def flush(self) -> None:
        """Sort the noted values of this queue into their buckets."""
        for child in (self.position, *self._wait.values(), *self._hold.values()):
            child.flush()

    def _move(self, waiting: int, holding: int) -> None:
        with self._lock:
            self.waiting += waiting
            self.holding += holding

    def _waits_no_more(self) -> None:
        self._move(-1, 0)
        if self._gauges is not None:
            self._gauges[0].dec()
