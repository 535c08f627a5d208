"""Metrics on prometheus_client's registry.

Children are looked up once a queue and kept (`QueueSeries`), because `labels()` costs as much as the
observation. What may happen to a queue is exposed from its first call on, at 0: Prometheus' `increase`
does not see the increment with which a series appears, and what is rare (a lost slot, a reclaimed one)
would never be seen at all. For the same reason the series of an idle queue are kept for a day, unless
there are too many. They are removed at a scrape, not when the queue becomes idle.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from genesis.backends.protocol import State
from genesis.observability import multiprocess, names
from genesis.observability.histogram import FastHistogram, noting
from genesis.observability.shared import SHARED, SharedGauges

__all__ = ["WAIT_BUCKETS", "Instruments", "QueueSeries", "instruments_of"]

# fmt: off
WAIT_BUCKETS = (
    0.0, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
)
OPERATION_BUCKETS = (  # `wait` lasts as long as a call waits, all others much shorter
    0.00001, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0,
)
POSITION_BUCKETS = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 10000.0)
# fmt: on
MAX_QUEUES = 100
IDLE_SECONDS = 86_400.0
CROWDED_IDLE_SECONDS = 600.0  # once there are MAX_QUEUES of them
LOOK_SECONDS = 1.0  # between two looks whether the registry still has the instruments
# Those whose quantiles are asked for: their buckets are there before the first observation, which else
# would raise the last bucket alone, and look like a wait beyond all bounds.
_USUAL_OUTCOMES = ("granted", "timeout", "cancelled", "released")


# With a global lock, adding to an attribute is one step; to take a lock costs more than all else here.
_FREE_THREADED = not getattr(sys, "_is_gil_enabled", lambda: True)()


class Count:
    """One child of a `FastCounter`."""

    __slots__ = ("_lock", "value")

    def __init__(self) -> None:
        self.begin_again()

    def begin_again(self) -> None:
        self._lock = threading.RLock()
        self.value = 0

    def inc(self) -> None:
        with self._lock:
            self.value += 1

    def set(self, value: int) -> None:
        self.value = value


class FastCounter(Collector):
    """A counter, or a gauge, without `_created` series, as the histograms are; good after a fork."""

    def __init__(self, family: Any, name: str, text: str, labelnames: Sequence[str]) -> None:
        self._family = family
        self._name = name.removesuffix("_total")
        self._text = text
        self._labelnames = tuple(labelnames)
        self._children: dict[tuple[str, ...], Count] = {}

    def labels(self, *values: str) -> Count:
        child = self._children.get(values)
        return self._children.setdefault(values, Count()) if child is None else child

    def remove_by_labels(self, labels: dict[str, str]) -> None:
        places = {self._labelnames.index(name): value for name, value in labels.items()}
        for key in list(self._children):
            if all(key[place] == value for place, value in places.items()):
                self._children.pop(key, None)

    def describe(self) -> Iterable[Any]:
        return [self._family(self._name, self._text, labels=self._labelnames)]

    def collect(self) -> Iterable[Any]:
        family = self._family(self._name, self._text, labels=self._labelnames)
        for labels, child in list(self._children.items()):
            family.add_metric(labels, child.value)
        yield family

    def begin_again(self) -> None:
        for child in list(self._children.values()):
            child.begin_again()


class QueueSeries:
    """The children of one `queue` label, and how many calls of this process are in it.

    Attributes:
        position: observes the place on entering.
        note_position: the same, for a call that leaves soon; see `noting`.
    """

    __slots__ = (
        "_gauges",
        "_hold",
        "_instruments",
        "_lock",
        "_note_granted",
        "_note_released",
        "_wait",
        "holding",
        "idle_since",
        "label",
        "note_position",
        "position",
        "waiting",
    )

    def __init__(self, instruments: Instruments, label: str) -> None:
        self.label = label
        self.begin_again()
        self._instruments = instruments
        self._wait: dict[str, Any] = {}
        self._hold: dict[str, Any] = {}
        self._gauges: tuple[Any, Any] | None = None
        if instruments.files is not None:
            waiting, holding = instruments.waiting.labels(label), instruments.holding.labels(label)
            waiting.set(0)  # a process before this one may have had its number, and have been killed
            holding.set(0)
            self._gauges = waiting, holding
        else:
            for outcome in get_args(names.WaitOutcome):
                usual = outcome in _USUAL_OUTCOMES
                self._wait[outcome] = instruments.wait.labels(label, outcome, usual=usual)
            for outcome in get_args(names.HoldOutcome):
                usual = outcome in _USUAL_OUTCOMES
                self._hold[outcome] = instruments.hold.labels(label, outcome, usual=usual)
        self.position: Any = instruments.position.labels(label)
        self.note_position = noting(self.position)
        self._note_granted = noting(self._child_of_wait("granted"))
        self._note_released = noting(self._child_of_hold("released"))
        for state in get_args(State):
            instruments.reclaimed.labels(label, state)
        for reason in get_args(names.RefusalReason):
            instruments.refused.labels(label, reason)
        instruments.disagreements.labels(label)

    def begin_again(self) -> None:
        # Loops of several threads may share the series. Reentrant, because the collector may close a
        # call, which is counted, in the middle of counting another.
        self._lock = threading.RLock()
        self.waiting = 0
        self.holding = 0
        self.idle_since: float | None = None  # as of the first scrape that found nobody here

    def entered(self) -> None:
        """One more waits."""
        if _FREE_THREADED:
            self._move(1, 0)
        else:
            self.waiting += 1
        self.idle_since = None
        if self._gauges is not None:
            self._gauges[0].inc()

    def granted(self, waited: float, exemplar: dict[str, str] | None) -> None:
        """One fewer waits, and one more holds."""
        if _FREE_THREADED:
            self._move(-1, 1)
        else:
            self.waiting -= 1
            self.holding += 1
        if self._gauges is not None:
            self._gauges[0].dec()
            self._gauges[1].inc()
        if exemplar is None:
            self._note_granted(waited)
        else:
            self._child_of_wait("granted").observe(waited, exemplar)

    def not_granted(self, outcome: str, waited: float, exemplar: dict[str, str] | None) -> None:
        """One fewer waits."""
        self._waits_no_more()
        self._child_of_wait(outcome).observe(waited, exemplar)

    def refused(self, reason: str) -> None:
        """One fewer waits: it was turned away, and is no wait."""
        self._waits_no_more()
        self._instruments.refused.labels(self.label, reason).inc()

    def hold_ended(self, outcome: str, held: float, exemplar: dict[str, str] | None) -> None:
        """One fewer holds."""
        if _FREE_THREADED:
            self._move(0, -1)
        else:
            self.holding -= 1
        if self._gauges is not None:
            self._gauges[1].dec()
        if exemplar is None and outcome == "released":
            self._note_released(held)
        else:
            self._child_of_hold(outcome).observe(held, exemplar)

    def settle(self) -> None:
        """Sort what the passages of this queue have noted."""
        for child in (self.position, *self._wait.values(), *self._hold.values()):
            child.settle()

    def _move(self, waiting: int, holding: int) -> None:
        with self._lock:
            self.waiting += waiting
            self.holding += holding

    def _waits_no_more(self) -> None:
        self._move(-1, 0)
        if self._gauges is not None:
            self._gauges[0].dec()

    def _child_of_wait(self, outcome: str) -> Any:
        child = self._wait.get(outcome)
        if child is None:
            child = self._wait[outcome] = self._instruments.wait.labels(self.label, outcome)
        return child

    def _child_of_hold(self, outcome: str) -> Any:
        child = self._hold.get(outcome)
        if child is None:
            child = self._hold[outcome] = self._instruments.hold.labels(self.label, outcome)
        return child


class Instruments(Collector):
    """All metrics of one registry; one collector, unless they are kept in files for all processes."""

    def __init__(
        self,
        registry: CollectorRegistry,
        wait_buckets: Sequence[float],
        clock: Callable[[], float],
    ) -> None:
        self.clock = clock
        self.files: multiprocess.SharedFiles | None = None
        self._in_files = multiprocess.directory() is not None
        self._registry = registry
        self._next_look = 0.0
        queue, ended = ("queue",), ("queue", "outcome")
        self.wait = self._histogram(
            names.WAIT_SECONDS, "Seconds waited in the line, once an item.", ended, wait_buckets
        )
        self.hold = self._histogram(
            names.HOLD_SECONDS, "Seconds for which a slot was held.", ended, wait_buckets
        )
        self.position = self._histogram(
            names.POSITION, "Place on entering; 0 if granted at once.", queue, POSITION_BUCKETS
        )
        self.operation = self._histogram(
            names.OPERATION_SECONDS,
            "Seconds that an operation on the backend took.",
            ("backend", "operation", "outcome"),
            OPERATION_BUCKETS,
        )
        self.waiting = self._gauge(names.WAITING, "Calls of this process that wait.", queue)
        self.holding = self._gauge(names.HOLDING, "Calls of this process that hold a slot.", queue)
        self.build_info = self._gauge(
            names.BUILD_INFO, "1, with the version and the backend.", ("version", "backend"), "livemax"
        )
        self.reclaimed = self._counter(
            names.RECLAIMED, "Waiters and slots taken back from dead instances.", ("queue", "state")
        )
        self.refused = self._counter(
            names.REFUSED, "Calls that were turned away without waiting.", ("queue", "reason")
        )
        self.disagreements = self._counter(
            names.LIMIT_DISAGREEMENTS, "Times a call site named another limit.", queue
        )
        self.disruptions = self._counter(
            names.DISRUPTIONS, "Times the backend was lost, or its data.", ("backend", "reason")
        )
        self.telemetry_errors = self._counter(
            names.TELEMETRY_ERRORS, "Failures of a sink; no call was affected.", ("sink",)
        )
        for sink in get_args(names.Sink):
            self.telemetry_errors.labels(sink)
        if self._in_files:
            labels, mode = ("queue", "backend"), multiprocess.SharedFiles.mode
            gauges = [self._gauge(name, text, labels, mode) for name, text in SHARED]
            self.files = multiprocess.SharedFiles(gauges)
        publish = None if self.files is None else self.files.publish
        self.shared = SharedGauges(clock, self.busy, publish)
        self.known: dict[str, QueueSeries] = {}  # by label
        self._changing = threading.RLock()  # held to add to `known` or remove from it, and the children
        if self.files is None:
            registry.register(self)
            _begin_again_after_forks(self)

    def describe(self) -> Iterable[Any]:
        return [family for each in (*self._own(), self.shared) for family in each.describe()]

    def collect(self) -> Iterator[Any]:
        self.remove_idle()
        for series in list(self.known.values()):
            self.waiting.labels(series.label).set(series.waiting)
            self.holding.labels(series.label).set(series.holding)
        for each in (*self._own(), self.shared):
            yield from each.collect()

    def stay_registered(self) -> None:
        """Come back to a registry from which the application has removed everything."""
        now = self.clock()
        if self.files is None and now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            try:
                self._registry.register(self)
            except ValueError:
                return  # it is there

    def begin_again(self) -> None:
        """After a fork: the child has done nothing yet, and owners of locks are not in it."""
        # A thread may have been scraping, and have held the registry's.
        self._registry._lock = threading.Lock()
        self._changing = threading.RLock()
        for each in (*self._own(), self.shared, *self.known.values()):
            each.begin_again()
        for labels in list(self.build_info._children):
            self.build_info.labels(*labels).set(1)

    def series(self, label: str) -> QueueSeries:
        """The series of a queue, or, once there are `MAX_QUEUES`, those of all others together."""
        with self._changing:
            if label not in self.known and len(self.known) >= MAX_QUEUES:
                label = names.OTHER_QUEUES
            series = self.known.get(label)
            if series is None:
                series = self.known[label] = QueueSeries(self, label)
            return series

    def settle(self) -> None:
        """Sort what was noted, of whichever queue: there may be no scrape for long, or none."""
        if self.files is not None:
            return
        self.stay_registered()
        for series in list(self.known.values()):
            series.settle()
        self.operation.settle()

    def busy(self, label: str) -> bool:
        """Whether a call of this process is under this label."""
        series = self.known.get(label)
        return series is not None and (series.waiting > 0 or series.holding > 0)

    def remove_idle(self) -> None:
        """Forget queues that have had no call of this process for long."""
        now = self.clock()
        patience = IDLE_SECONDS if len(self.known) < MAX_QUEUES else CROWDED_IDLE_SECONDS
        for label, series in list(self.known.items()):
            if self.busy(label):
                series.idle_since = None
            elif series.idle_since is None:
                series.idle_since = now
                if self.busy(label):  # a call has come meanwhile, in another thread
                    series.idle_since = None
            elif now - series.idle_since >= patience:
                self._remove(label, series)

    def _remove(self, label: str, series: QueueSeries) -> None:
        # A scrape has a thread of its own: a call that came back to the queue between two of these
        # steps would take up children of which the next step removes some from the exposition.
        with self._changing:
            if self.known.get(label) is not series or self.busy(label):
                return  # another scrape was faster, or a call
            del self.known[label]
            for metric in (
                *(self.wait, self.hold, self.position, self.waiting, self.holding),
                *(self.reclaimed, self.refused, self.disagreements),
            ):
                metric.remove_by_labels({"queue": label})

    def _own(self) -> tuple[Any, ...]:
        return (
            *(self.wait, self.hold, self.position, self.operation),
            *(self.waiting, self.holding, self.build_info, self.reclaimed, self.refused),
            *(self.disagreements, self.disruptions, self.telemetry_errors),
        )

    def _histogram(
        self, name: str, text: str, labelnames: tuple[str, ...], buckets: Sequence[float]
    ) -> Any:
        if self._in_files:
            return Histogram(name, text, labelnames, registry=self._registry, buckets=buckets)
        return FastHistogram(name, text, labelnames, buckets)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...], mode: Any = "livesum") -> Any:
        if self._in_files:
            return Gauge(name, text, labels, registry=self._registry, multiprocess_mode=mode)
        return FastCounter(GaugeMetricFamily, name, text, labels)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Any:
        if self._in_files:
            return Counter(name, text, labels, registry=self._registry)
        return FastCounter(CounterMetricFamily, name, text, labels)


_of_this_process: weakref.WeakSet[Instruments] = weakref.WeakSet()


def _begin_again_after_forks(instruments: Instruments) -> None:
    if not _of_this_process and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)
    _of_this_process.add(instruments)


def _after_fork() -> None:
    for instruments in list(_of_this_process):
        instruments.begin_again()


def instruments_of(
    registry: CollectorRegistry, wait_buckets: Sequence[float], clock: Callable[[], float]
) -> Instruments:
    """The instruments of a registry; made once, kept on the registry itself.

    Kept there, and not in a table of this module, because a registry outlives a reload of the module,
    and registering a name twice raises.
    """
    kept: Instruments | None = getattr(registry, "_genesis_instruments", None)
    if kept is None:
        kept = Instruments(registry, wait_buckets, clock)
        registry._genesis_instruments = kept  # type: ignore[attr-defined]
    else:
        kept.stay_registered()
    return kept
