"""Metrics on prometheus_client's registry, with exemplars.

Children are looked up once a queue and kept (`QueueSeries`), because `labels()` costs as much as the
observation. What may happen to a queue is exposed from its first call on, at 0: Prometheus' `increase`
does not see the increment with which a series appears, and what is rare (a lost slot, a reclaimed one)
would never be seen at all. For the same reason the series of an idle queue are kept for a day, unless
there are too many. They are removed at a scrape, not when the queue becomes idle.
"""

from __future__ import annotations

import math
import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Exemplar, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from genesis.backends.protocol import QueueStats, State
from genesis.observability import names

__all__ = ["WAIT_BUCKETS", "Instruments", "QueueSeries", "instruments_of", "noting"]

# fmt: off
WAIT_BUCKETS = (
    0.0, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
)
OPERATION_BUCKETS = (
    0.00001, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005,
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
)
POSITION_BUCKETS = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 10000.0)
# fmt: on
MAX_QUEUES = 100
MAX_REPORTS = 10_000
IDLE_SECONDS = 86_400.0
CROWDED_IDLE_SECONDS = 600.0  # once there are MAX_QUEUES of them
STALE_HEARTBEATS = 3
_MOST_UNSORTED = 256
MAX_UNSETTLED = 512  # calls that left
# Those whose quantiles are asked for: their buckets are there before the first observation, which else
# would raise the last bucket alone, and look like a wait beyond all bounds.
_USUAL_OUTCOMES = ("granted", "timeout", "cancelled", "released")

_SHARED = (
    (names.DEPTH, "Waiters in the queue, over all instances."),
    (names.IN_USE, "Slots in use in the queue, over all instances."),
    (names.LIMIT, "The limit in force."),
    (names.OLDEST_WAIT, "Seconds for which the head of the line has waited."),
)


class Distribution:
    """One child of a `FastHistogram`.

    An observation is only noted. Whoever reads sorts them into the buckets, and so does `observe` once
    there are `_MOST_UNSORTED`: in order, some hundreds are split at each bound by one search.

    Attributes:
        note: observes a value without an exemplar, and never sorts. For the path of every call, in
            which `noting` says who sorts.
        usual: as `FastHistogram` says.
    """

    __slots__ = ("_bounds", "_counts", "_exemplars", "_lock", "_sum", "_unsorted", "note", "usual")

    def __init__(self, bounds: tuple[float, ...], *, usual: bool) -> None:
        self._bounds = bounds
        self.usual = usual
        # The one list for good: appending, copying a part and deleting it are atomic, and what is
        # appended meanwhile comes after that part. So several threads' loops may feed it while another
        # thread reads, and none is lost or counted twice.
        self._unsorted: list[float] = []
        self.note = self._unsorted.append
        self._lock = threading.Lock()  # over the sorting, and over the next two
        self._counts = [0] * (len(bounds) + 1)  # not cumulative; the last one is beyond all bounds
        self._sum = 0.0
        self._exemplars: dict[int, tuple[dict[str, str], float]] = {}  # the latest, by bucket

    def observe(self, value: float, exemplar: dict[str, str] | None = None) -> None:
        self.note(value)
        if exemplar is not None:
            self._exemplars[bisect_left(self._bounds, value)] = (exemplar, value)
        if len(self._unsorted) >= _MOST_UNSORTED:
            self.settle()

    def settle(self) -> None:
        """Sort what was noted, unless another is just at it."""
        # Never waits for the lock: the collector may have closed a call in the middle of `read`.
        if self._unsorted and self._lock.acquire(blocking=False):
            try:
                self._sort()
            finally:
                self._lock.release()

    def read(self) -> tuple[list[int], float, dict[int, tuple[dict[str, str], float]]]:
        """Observations by bucket, their sum, and the latest exemplars by bucket."""
        with self._lock:
            self._sort()
            return list(self._counts), self._sum, dict(self._exemplars)

    def _sort(self) -> None:
        values = self._unsorted[:]
        if not values:
            return
        del self._unsorted[: len(values)]
        try:
            total = float(sum(values))
            values.sort()
        except (TypeError, OverflowError):
            total = math.nan
        if total != total:  # something is no number: it is left out, and it alone
            values = sorted(v for v in values if isinstance(v, (int, float)) and v == v)
            total = sum(values)
        self._sum += total
        counts, bounds, below, place = self._counts, self._bounds, 0, 0
        while below < len(values):  # one step a bucket that has any
            place = bisect_left(bounds, values[below], place)
            reached = len(values)
            if place < len(bounds):
                reached = bisect_right(values, bounds[place], below)
            counts[place] += reached - below
            below = reached


class FastHistogram(Collector):
    """A histogram that observes at a third of the cost of prometheus_client's.

    Five of its observations stand in the path of every call; they, not the line, would decide what a
    call costs. The exposition is left to prometheus_client. In multiprocess mode, which knows no custom
    collectors, its own Histogram is used instead.

    A child without observations shows all its buckets only if it is a `usual` one; else its count and
    sum alone, a seventh of the series: most queues never see most outcomes.
    """

    def __init__(
        self, name: str, text: str, labelnames: tuple[str, ...], bounds: Sequence[float]
    ) -> None:
        self._name = name
        self._text = text
        self._labelnames = labelnames
        self._bounds = tuple(bounds)
        self._titles = [*map(floatToGoString, self._bounds), "+Inf"]
        self._children: dict[tuple[str, ...], Distribution] = {}

    def labels(self, *values: str, usual: bool = True) -> Distribution:
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = Distribution(self._bounds, usual=usual)
        return child

    def settle(self) -> None:
        for child in list(self._children.values()):
            child.settle()

    def remove_by_labels(self, labels: dict[str, str]) -> None:
        places = {self._labelnames.index(name): value for name, value in labels.items()}
        for key in list(self._children):
            if all(key[place] == value for place, value in places.items()):
                del self._children[key]

    def describe(self) -> Iterable[Any]:
        return [HistogramMetricFamily(self._name, self._text, labels=self._labelnames)]

    def collect(self) -> Iterable[Any]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labelnames)
        for labels, child in list(self._children.items()):
            counts, total, exemplars = child.read()
            buckets: list[Any] = []
            cumulative = 0
            whole = child.usual or any(counts)
            for place, title in enumerate(self._titles):
                cumulative += counts[place]
                if not whole and title != "+Inf":
                    continue
                shown = exemplars.get(place)
                buckets.append((title, cumulative, Exemplar(*shown) if shown else None))
            family.add_metric(labels, buckets, total)
        yield family


def noting(child: Any) -> Callable[[float], None]:
    """The cheapest way to observe a value without an exemplar, of either kind of histogram.

    Who uses it calls `Instruments.settle` every `MAX_UNSETTLED` calls that leave.
    """
    note: Callable[[float], None] = getattr(child, "note", None) or child.observe
    return note


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
        self.waiting = 0
        self.holding = 0
        self.idle_since: float | None = None  # as of the first scrape that found nobody here
        self._instruments = instruments
        self._wait: dict[str, Any] = {}
        self._hold: dict[str, Any] = {}
        self._gauges: tuple[Any, Any] | None = None
        waiting, holding = instruments.waiting.labels(label), instruments.holding.labels(label)
        if instruments.multiprocess:
            self._gauges = waiting, holding  # functions are not asked in multiprocess mode
        else:
            waiting.set_function(lambda: self.waiting)
            holding.set_function(lambda: self.holding)
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

    def entered(self) -> None:
        """One more waits."""
        self.waiting += 1
        self.idle_since = None
        if self._gauges is not None:
            self._gauges[0].inc()

    def granted(self, waited: float, exemplar: dict[str, str] | None) -> None:
        """One fewer waits, and one more holds."""
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
        self.waiting -= 1
        if self._gauges is not None:
            self._gauges[0].dec()
        self._child_of_wait(outcome).observe(waited, exemplar)

    def refused(self, reason: str) -> None:
        """One fewer waits: it was turned away, and is no wait."""
        self.waiting -= 1
        if self._gauges is not None:
            self._gauges[0].dec()
        self._instruments.refused.labels(self.label, reason).inc()

    def hold_ended(self, outcome: str, held: float, exemplar: dict[str, str] | None) -> None:
        """One fewer holds."""
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


class SharedGauges(Collector):
    """Gauges of shared state, as the backends reported it; gone, rather than stale.

    Queues that share a label (`_other`, or an application's own `queue_label`) are added up, and the
    oldest of their waits is shown.

    Args:
        clock: monotonic seconds.
        before_scrape: called first.
        busy: whether this process has calls under a label.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        before_scrape: Callable[[], None],
        busy: Callable[[str], bool],
    ) -> None:
        self._clock = clock
        self._before_scrape = before_scrape
        self._busy = busy
        self._reports: dict[tuple[str, str], tuple[str, QueueStats, float, float]] = {}

    def report(
        self, queue_id: str, backend: str, label: str, stats: QueueStats, heartbeat: float
    ) -> None:
        """Show `stats` for `STALE_HEARTBEATS`, unless a newer report comes.

        For one only when this process has no call left there: no newer report will come, and the
        last one tells of calls that have gone.
        """
        if len(self._reports) >= MAX_REPORTS:
            self._drop_stale()
        self._reports[queue_id, backend] = (label, stats, self._clock(), heartbeat)

    def describe(self) -> Iterable[Any]:
        return [GaugeMetricFamily(name, text) for name, text in _SHARED]

    def collect(self) -> Iterable[Any]:
        self._before_scrape()
        self._drop_stale()
        totals: dict[tuple[str, str], tuple[float, float, float, float]] = {}
        for (_, backend), (label, stats, *_) in list(self._reports.items()):
            waiting, in_use, limit, oldest = totals.get((label, backend), (0, 0, 0, 0.0))
            totals[label, backend] = (
                waiting + stats.waiting,
                in_use + stats.in_use,
                limit + stats.limit,
                max(oldest, stats.oldest_wait),
            )
        for place, (name, text) in enumerate(_SHARED):
            family = GaugeMetricFamily(name, text, labels=("queue", "backend"))
            for labels, values in totals.items():
                family.add_metric(labels, values[place])
            yield family

    def _drop_stale(self) -> None:
        now = self._clock()
        kept = {}
        for key, report in list(self._reports.items()):
            label, _, reported, heartbeat = report
            lifetime = heartbeat * (STALE_HEARTBEATS if self._busy(label) else 1)
            if now <= reported + lifetime:
                kept[key] = report
        self._reports = kept


class Instruments:
    """All metrics of one registry."""

    def __init__(
        self,
        registry: CollectorRegistry,
        wait_buckets: Sequence[float],
        clock: Callable[[], float],
    ) -> None:
        self.clock = clock
        self.multiprocess = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        self._registry = registry
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
        self.shared = SharedGauges(clock, self.remove_idle, self.busy)
        registry.register(self.shared)
        self.known: dict[str, QueueSeries] = {}  # by label
        self._changing = threading.Lock()  # held to add to `known` or remove from it, with the children

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
        if self.multiprocess:
            return
        for series in list(self.known.values()):
            series.settle()
        self.operation.settle()

    def busy(self, label: str) -> bool:
        """Whether a call of this process is under this label."""
        series = self.known.get(label)
        return series is not None and (series.waiting > 0 or series.holding > 0)

    def remove_idle(self) -> None:
        """Forget queues that have had no call of this process for long."""
        if self.multiprocess:
            return  # files of other processes: nothing can be removed from them
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

    def _histogram(
        self, name: str, text: str, labelnames: tuple[str, ...], buckets: Sequence[float]
    ) -> Any:
        if self.multiprocess:
            return Histogram(name, text, labelnames, registry=self._registry, buckets=buckets)
        histogram = FastHistogram(name, text, labelnames, buckets)
        self._registry.register(histogram)
        return histogram

    def _gauge(self, name: str, text: str, labelnames: tuple[str, ...], mode: Any = "livesum") -> Gauge:
        return Gauge(name, text, labelnames, registry=self._registry, multiprocess_mode=mode)

    def _counter(self, name: str, text: str, labelnames: tuple[str, ...]) -> Counter:
        return Counter(name, text, labelnames, registry=self._registry)


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
    return kept
