"""`Telemetry`: the sinks of a `Queue`, and the handling of their errors."""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from opentelemetry.trace import TracerProvider
from prometheus_client import REGISTRY, CollectorRegistry

from genesis.observability import names
from genesis.observability.logs import Log, own_logger
from genesis.observability.metrics import WAIT_BUCKETS, Instruments, instruments_of
from genesis.observability.series import QueueSeries

T = TypeVar("T")

MAX_LABEL = 120  # characters


class Telemetry:
    """The sinks of the observing layer. One object can serve several `Queue`s.

    Args:
        registry: a prometheus_client registry; the process' default registry if None. In multiprocess
            mode, all objects of a process share the metrics of the first one.
        tracer_provider: an OpenTelemetry provider; the process' global provider if None.
        logger: a stdlib or structlog logger; the stdlib logger `genesis` if None.
        queue_label: returns the `queue` label for a queue_id, for applications with many short-lived
            queues. Labels are bounded in any case: 100 at a time, then `_other`.
        wait_buckets: upper bounds in seconds of the wait and hold histograms. The first Telemetry of a
            registry (in multiprocess mode, of the process) sets them.
        clock: returns monotonic seconds; replaced in tests.

    Raises:
        ValueError: wait_buckets do not increase, or contain no finite bound.
        TypeError: `logger.log` is a coroutine function.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        tracer_provider: TracerProvider | None = None,
        logger: Any = None,
        queue_label: Callable[[str], str] | None = None,
        wait_buckets: Sequence[float] = WAIT_BUCKETS,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = REGISTRY if registry is None else registry
        self.tracer_provider = tracer_provider
        self.clock = clock
        self.log = Log(logger)
        self._queue_label = queue_label
        self._wait_buckets = _finite(wait_buckets)
        self._instruments: Instruments | None = None
        self.known: dict[str, QueueSeries] = {}  # by label, if queue_ids are labels
        self._logged: set[tuple[str, type]] = set()  # kinds of failures that were logged

    @property
    def instruments(self) -> Instruments:
        if self._instruments is None:
            self._instruments = instruments_of(self.registry, self._wait_buckets, self.clock)
            if self._queue_label is None:
                self.known = self._instruments.known
        return self._instruments

    def series(self, queue_id: str) -> QueueSeries:
        """The metrics of a queue, under its label."""
        label = queue_id
        if self._queue_label is not None:
            given = self.guarded("label", lambda label: str(label(queue_id)), self._queue_label)
            label = names.OTHER_QUEUES if given is None else given
        instruments = self.instruments
        return instruments.known.get(label) or instruments.series(_short(label))

    def event(self, level: int, event: names.LogEvent, fields: dict[str, Any]) -> None:
        """Write a log event."""
        try:
            if self.log.enabled(level):
                self.log.write(level, event, **fields)
        except Exception:
            self.failed("logs")

    def guarded(self, sink: names.Sink, step: Callable[..., T], *args: Any, **options: Any) -> T | None:
        """Call `step` and return its result. If it raises, count a failure of `sink`; return None."""
        try:
            return step(*args, **options)
        except Exception:
            self.failed(sink)
            return None

    def failed(self, sink: names.Sink, error: BaseException | None = None) -> None:
        """Count an error of a sink. Never raises, even if counting fails.

        The first error of each kind is logged with its traceback.

        Args:
            sink: the sink that raised.
            error: its exception; None for the exception that is being handled.
        """
        error = error or sys.exc_info()[1]
        try:
            self.instruments.telemetry_errors.labels(sink).inc()
        except Exception:
            self._log_once("metrics", sys.exc_info()[1])
        self._log_once(sink, error)

    def _log_once(self, sink: names.Sink, error: BaseException | None) -> None:
        kind = (sink, type(error))
        if kind in self._logged:
            return
        self._logged.add(kind)
        try:
            text = (
                "telemetry: %s failed with %s; no call is affected. Failures are counted in %s{sink=%r}"
            )
            fields = (sink, type(error).__name__, names.TELEMETRY_ERRORS, sink)
            own_logger().error(text, *fields, exc_info=error)
        except Exception:
            return


def _short(label: str) -> str:
    """A label of at most `MAX_LABEL` characters; long labels get a hash. An Enum becomes its text.

    Lone surrogates are escaped, because no scrape could encode them.
    """
    encoded = str.__str__(label).encode(errors="backslashreplace")
    text = encoded.decode()
    if len(text) <= MAX_LABEL:
        return text
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    return f"{text[: MAX_LABEL - 17]}~{digest}"


def _finite(buckets: Sequence[float]) -> tuple[float, ...]:
    """`buckets` without infinity, which every histogram adds itself."""
    finite = tuple(bound for bound in buckets if bound != math.inf)
    if not finite or any(not low < high for low, high in pairwise((-math.inf, *finite))):
        raise ValueError(f"wait_buckets must be numbers of seconds that rise, got {buckets!r}")
    return finite
