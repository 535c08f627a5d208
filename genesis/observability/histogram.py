"""A histogram with cheap observations, because every call makes five of them."""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from prometheus_client.core import Exemplar, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_MAX_UNSORTED = 256
MAX_UNFLUSHED = 512  # steps


class Distribution:
    """One child of a `FastHistogram`.

    An observation only appends to a list. `read`, and `observe` when there are `_MAX_UNSORTED` values,
    sort the list into the buckets: a sorted list of some hundred values needs one search per bucket.

    `append` observes a value without an exemplar and without sorting, for the path of every call; see
    `appender` for who sorts.

    Args:
        bounds: of the buckets, without infinity.
        all_buckets: see `FastHistogram`.
    """

    def __init__(self, bounds: tuple[float, ...], *, all_buckets: bool = True) -> None:
        self._bounds = bounds
        self.all_buckets = all_buckets
        # Never replaced. Appending, copying a prefix and deleting a prefix are atomic, with and without
        # the GIL, and new values come after the prefix. Several threads can therefore append while
        # another sorts: no value is lost or counted twice.
        self._unsorted: list[float] = []
        self.append = self._unsorted.append
        self.reset()

    def reset(self) -> None:
        """Reset in a forked child: it has no observations, and the lock's owner does not exist."""
        self._lock = threading.Lock()  # for sorting, `_counts` and `_sum`
        self._unsorted.clear()
        self._counts = [0] * (len(self._bounds) + 1)  # not cumulative; the last is above all bounds
        self._sum = 0.0
        self._exemplars: dict[int, Exemplar] = {}  # the latest, by bucket

    def observe(self, value: float, exemplar: dict[str, str] | None = None) -> None:
        self.append(value)
        if exemplar is not None:
            bucket = bisect_left(self._bounds, value)
            self._exemplars[bucket] = Exemplar(exemplar, value, time.time())
        if len(self._unsorted) >= _MAX_UNSORTED:
            self.flush()

    def flush(self) -> None:
        """Sort the noted values, unless another thread is doing so."""
        # Never wait for the lock: the garbage collector might run this in the middle of `read`.
        if self._unsorted and self._lock.acquire(blocking=False):
            try:
                self._sort()
            finally:
                self._lock.release()

    def read(self) -> tuple[list[int], float, dict[int, Exemplar]]:
        """The number of observations per bucket, their sum, and the latest exemplar per bucket."""
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
        if total != total:  # drop the values that are not numbers, and keep the others
            values = sorted(v for v in values if isinstance(v, (int, float)) and v == v)
            total = sum(values)
        self._sum += total
        counts, bounds, below, place = self._counts, self._bounds, 0, 0
        while below < len(values):  # one step per non-empty bucket
            place = bisect_left(bounds, values[below], place)
            reached = len(values)
            if place < len(bounds):
                reached = bisect_right(values, bounds[place], below)
            counts[place] += reached - below
            below = reached


class Family(Collector):
    """Children by label values, as in prometheus_client, but cheaper, and reset after a fork.

    Counters and histograms have no `_created` series.

    Args:
        family: creates a prometheus_client metric family, which `_fill` fills.
        name: the metric's name.
        text: its help text.
        labelnames: its labels; `queue`, if there is one, is the first.
        child: creates a child.
    """

    def __init__(
        self, family: Any, name: str, text: str, labelnames: tuple[str, ...], child: Callable[..., Any]
    ) -> None:
        self._family = partial(family, name.removesuffix("_total"), text, labels=labelnames)
        self.labelnames = labelnames
        self._child = child
        self._children: dict[tuple[str, ...], Any] = {}

    def labels(self, *values: str, **options: Any) -> Any:
        child = self._children.get(values)
        if child is None:
            # `setdefault`: if two threads create a child, both use the first one.
            child = self._children.setdefault(values, self._child(**options))
        return child

    def remove_queue(self, label: str) -> None:
        """Remove the children of a queue, if this metric has the label `queue`."""
        if self.labelnames[0] == "queue":
            for key in [key for key in list(self._children) if key[0] == label]:
                self._children.pop(key, None)

    def flush(self) -> None:
        """Sort the noted values, if the children have such."""

    def reset(self) -> None:
        for child in list(self._children.values()):
            child.reset()

    def collect(self) -> Iterable[Any]:
        family = self._family()
        for labels, child in list(self._children.items()):
            self._fill(family, labels, child)
        yield family

    def _fill(self, family: Any, labels: tuple[str, ...], child: Any) -> None:
        family.add_metric(labels, child.value)


class FastHistogram(Family):
    """A histogram whose observations cost a third of prometheus_client's.

    prometheus_client writes the exposition. In multiprocess mode, which supports no custom collectors,
    its Histogram is used instead.

    A child without observations exposes all its buckets only if `all_buckets` is set, otherwise only
    its count and sum. That is a seventh of the series: most queues never see most outcomes.
    """

    def __init__(
        self, name: str, text: str, labelnames: tuple[str, ...], bounds: Sequence[float]
    ) -> None:
        child = partial(Distribution, tuple(bounds))
        super().__init__(HistogramMetricFamily, name, text, labelnames, child)
        self._titles = [*map(floatToGoString, bounds), "+Inf"]

    def flush(self) -> None:
        for child in list(self._children.values()):
            child.flush()

    def _fill(self, family: Any, labels: tuple[str, ...], child: Distribution) -> None:
        counts, total, exemplars = child.read()
        buckets: list[Any] = []
        cumulative = 0
        whole = child.all_buckets or any(counts)
        for place, title in enumerate(self._titles):
            cumulative += counts[place]
            if whole or title == "+Inf":
                buckets.append((title, cumulative, exemplars.get(place)))
        family.add_metric(labels, buckets, total)


def appender(child: Any) -> Callable[[float], None]:
    """The cheapest way to observe a value without an exemplar, for either kind of histogram.

    The caller must call `Instruments.flush` after every `MAX_UNFLUSHED` calls.
    """
    note: Callable[[float], None] = getattr(child, "append", None) or child.observe
    return note
