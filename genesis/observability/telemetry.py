"""`Telemetry`: where a `Queue` reports to, and what happens when that fails."""

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
from genesis.observability.metrics import WAIT_BUCKETS, Instruments, QueueSeries, instruments_of

__all__ = ["Telemetry"]

T = TypeVar("T")

MAX_LABEL = 120  # characters


class Telemetry:
    """The sinks of the observing layer. Every argument is optional; one object may serve many queues.

    Args:
        registry: of prometheus_client; the process' default one if None.
        tracer_provider: of OpenTelemetry; the process' global one if None.
        logger: a stdlib logger, or a structlog one; the stdlib logger `genesis` if None.
        queue_label: gives the `queue` label of a queue_id, for applications with many short-lived
            queues. Labels are bounded in any case: 100 at a time, then `_other`.
        wait_buckets: upper bounds in seconds of the wait and hold histograms. The first Telemetry on a
            registry decides.
        clock: monotonic seconds; injected by tests.

    Raises:
        ValueError: wait_buckets do not rise, or there is none but infinity.
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
        self._told: set[tuple[str, type]] = set()  # the failures that were logged

    @property
    def instruments(self) -> Instruments:
        if self._instruments is None:
            self._instruments = instruments_of(self.registry, self._wait_buckets, self.clock)
        return self._instruments

    def series(self, queue_id: str) -> QueueSeries:
        """The metrics of a queue, under its label."""
        label = queue_id
        if self._queue_label is not None:
            given = self.guarded("label", lambda label: str(label(queue_id)), self._queue_label)
            label = names.OTHER_QUEUES if given is None else given
        instruments = self._instruments or self.instruments
        return instruments.known.get(label) or instruments.series(_short(label))

    def event(self, level: int, event: names.LogEvent, fields: dict[str, Any]) -> None:
        """Write a log event."""
        try:
            if self.log.enabled(level):
                self.log.write(level, event, **fields)
        except Exception:
            self.failed("logs")

    def guarded(self, sink: names.Sink, step: Callable[..., T], *args: Any, **options: Any) -> T | None:
        """What `step` returns; None if it raises, which is then counted as a failure of `sink`."""
        try:
            return step(*args, **options)
        except Exception:
            self.failed(sink)
            return None

    def failed(self, sink: names.Sink, error: BaseException | None = None) -> None:
        """A sink raised: count it, and let the call go on. If even counting fails, it is let go.

        The first of each kind is logged with its traceback.

        Args:
            sink: which.
            error: what it raised; None takes the exception that is being handled.
        """
        error = error or sys.exc_info()[1]
        try:
            self.instruments.telemetry_errors.labels(sink).inc()
        except Exception:
            self._tell("metrics", sys.exc_info()[1])
        self._tell(sink, error)

    def _tell(self, sink: names.Sink, error: BaseException | None) -> None:
        kind = (sink, type(error))
        if kind in self._told:
            return
        self._told.add(kind)
        try:
            text = (
                "telemetry: %s failed with %s; no call is affected. Failures are counted in %s{sink=%r}"
            )
            fields = (sink, type(error).__name__, names.TELEMETRY_ERRORS, sink)
            own_logger().error(text, *fields, exc_info=error)
        except Exception:
            return


def _short(label: str) -> str:
    """At most `MAX_LABEL` characters, different ones for different labels; of an Enum, its text."""
    text = str.__str__(label)
    if len(text) <= MAX_LABEL:
        return text
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
    return f"{text[: MAX_LABEL - 17]}~{digest}"


def _finite(buckets: Sequence[float]) -> tuple[float, ...]:
    """`buckets` without the infinite one, which every histogram has by itself."""
    finite = tuple(bound for bound in buckets if bound != math.inf)
    if not finite or any(not low < high for low, high in pairwise((-math.inf, *finite))):
        raise ValueError(f"wait_buckets must be numbers of seconds that rise, got {buckets!r}")
    return finite
