"""`configure`: traces over OTLP and JSON logs with one call, for an application that has neither.

The application's own configuration is left alone: handlers, tracer provider, structlog's configuration.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from typing import Any, TextIO
from urllib.parse import urlsplit

import structlog
from opentelemetry import trace
from prometheus_client import CollectorRegistry

from genesis.backends.identity import new_instance_id
from genesis.observability.logs import ThreadedStreamHandler, safe_repr
from genesis.observability.span_context import ids_of
from genesis.observability.telemetry import Telemetry

_TRACES_PATH = "/v1/traces"
_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


@dataclass(eq=False)
class Observability:
    """The result of `configure`. End it with `shutdown`, or use it as a context manager.

    Attributes:
        instance_id: the resource's `service.instance.id`.
        tracer_provider: the exporting provider, or None without an endpoint. If the process already
            had a global provider, pass this one to `Telemetry(tracer_provider=...)`.
        handler: the JSON log handler, or None if logging was left alone.
    """

    instance_id: str
    tracer_provider: Any
    handler: ThreadedStreamHandler | None
    _logger: logging.Logger  # has the handler
    _level_before: int
    _level: int  # set by `configure`
    _shutdown_timeout: float
    _done: bool = False

    def __post_init__(self) -> None:
        atexit.register(self.shutdown)

    def shutdown(self, timeout: float | None = None) -> bool:
        """Export the ended spans, write the log lines, and undo `configure`. Blocks.

        A second call does nothing.

        Args:
            timeout: the maximum in seconds, even if the collector or the log stream hangs; None for
                the `shutdown_timeout` of `configure`.

        Returns:
            Whether it finished in time. Spans and log lines not sent by then are lost.
        """
        if self._done:
            return True
        self._done = True
        atexit.unregister(self.shutdown)
        timeout = self._shutdown_timeout if timeout is None else timeout
        deadline = time.monotonic() + timeout
        # The logs come last, because the SDK might log; a fifth of the time is reserved for them.
        in_time = self._shut_traces(0.8 * timeout)
        if self.handler is not None:
            self._logger.removeHandler(self.handler)
            if self._logger.level == self._level:  # the application has not changed it since
                self._logger.setLevel(self._level_before)
            in_time = self.handler.stop(max(0.0, deadline - time.monotonic())) and in_time
        return in_time

    def __enter__(self) -> Observability:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def _shut_traces(self, timeout: float) -> bool:
        if self.tracer_provider is None:
            return True
        # In a daemon thread: the SDK's own timeouts are 30 s or none, and an exporter that is trying to
        # connect cannot be interrupted.
        ending = threading.Thread(
            target=self.tracer_provider.shutdown, name="genesis-trace-shutdown", daemon=True
        )
        try:
            ending.start()
            ending.join(timeout)
        except RuntimeError:
            ending.run()  # some versions of Python cannot start a thread during shutdown
        return not ending.is_alive()


def configure(
    service_name: str,
    *,
    instance_id: str | None = None,
    otlp_endpoint: str | None = None,
    sample_ratio: float = 1.0,
    json_logs: bool | None = None,
    log_level: int | str = "INFO",
    log_stream: TextIO | None = None,
    shutdown_timeout: float = 5.0,
    registry: CollectorRegistry | None = None,
) -> Observability:
    """Export traces, and write logs as JSON, one object per line.

    Call it once, before you create the first `Queue`. End it with `shutdown` on the result; that also
    happens at the exit of the process.

        with configure("call-router", otlp_endpoint="http://collector:4318"):
            asyncio.run(main())

    Args:
        service_name: the resource's `service.name`, the same on every instance. OTEL_SERVICE_NAME
            takes precedence.
        instance_id: the resource's `service.instance.id`; a new `host-pid-random` if None.
        otlp_endpoint: the collector's base URL; `/v1/traces` is appended. None uses
            OTEL_EXPORTER_OTLP_ENDPOINT (or its `_TRACES_` form) from the environment. Without an
            endpoint no traces are exported, and the SDK is not needed.
        sample_ratio: the ratio of new traces to sample, 0 to 1. A trace continued from a caller keeps
            the caller's decision. OTEL_TRACES_SAMPLER takes precedence.
        json_logs: None writes JSON logs for the whole process if neither the root logger nor
            `genesis` has a handler, and otherwise leaves logging alone. True adds a JSON handler to
            the logger `genesis` even then. False leaves logging alone.
        log_level: the level of the logger that gets the handler.
        log_stream: the stream to write to; stderr if None. A thread writes to it, so a blocked stream
            delays no call.
        shutdown_timeout: the maximum duration of `shutdown` in seconds.
        registry: counts failed exports; prometheus_client's default registry if None.

    Raises:
        ImportError: there is an endpoint, but the SDK or the exporter is not installed.
        ValueError: an empty service name, an endpoint that is not an http(s) URL, a ratio outside 0
            to 1, a negative or infinite timeout, or an unknown level.
    """
    if not service_name:
        raise ValueError("service_name is empty; name the application as its traces are to show it")
    if not 0 <= sample_ratio <= 1:
        raise ValueError(f"sample_ratio must be from 0 to 1, got {sample_ratio!r}")
    if not 0 <= shutdown_timeout < math.inf:
        raise ValueError(f"shutdown_timeout must be 0 or more seconds, got {shutdown_timeout!r}")
    level = logging.getLevelName(log_level.upper()) if isinstance(log_level, str) else log_level
    if not isinstance(level, int) or isinstance(level, bool):
        raise ValueError(f"log_level must be a level of logging, as 'INFO', got {log_level!r}")
    # OpenTelemetry's variables take precedence over arguments, because the operator sets them.
    service_name = os.environ.get("OTEL_SERVICE_NAME") or service_name
    instance_id = instance_id or new_instance_id()
    provider = None
    if otlp_endpoint or any(os.environ.get(name) for name in _ENDPOINT_VARIABLES):
        provider = _tracer_provider(service_name, instance_id, otlp_endpoint, sample_ratio, registry)
    root, own = logging.getLogger(), logging.getLogger("genesis")
    has_logging = bool(root.handlers) or any(
        not isinstance(handler, logging.NullHandler) for handler in own.handlers
    )
    logger = own if has_logging else root
    level_before, handler = logger.level, None
    if json_logs or (json_logs is None and not has_logging):
        handler = ThreadedStreamHandler(log_stream)
        handler.setFormatter(_formatter(service_name, instance_id))
        logger.addHandler(handler)
        logger.setLevel(level)
    if provider is not None and trace.get_tracer_provider() is not provider:
        own.warning(
            "the process has a tracer provider already, which stays the global one; give "
            "configure(...).tracer_provider to Telemetry(tracer_provider=...) to export through it"
        )
    return Observability(instance_id, provider, handler, logger, level_before, level, shutdown_timeout)


def _tracer_provider(
    service_name: str,
    instance_id: str,
    endpoint: str | None,
    sample_ratio: float,
    registry: CollectorRegistry | None,
) -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError as error:
        raise ImportError(
            f"exporting traces needs the OpenTelemetry SDK and its OTLP/HTTP exporter ({error}). "
            "Install them with: pip install 'genesis-queue[otel]'"
        ) from error
    # Without a host, Jaeger takes a span that outlasts its parent (`release`) for a clock skew.
    resource = Resource({"host.name": socket.gethostname()}).merge(
        Resource.create({"service.name": service_name, "service.instance.id": instance_id})
    )
    chosen = os.environ.get("OTEL_TRACES_SAMPLER")  # the SDK reads it if `sampler` is None
    provider = TracerProvider(
        resource=resource,
        sampler=None if chosen else ParentBased(TraceIdRatioBased(sample_ratio)),
        shutdown_on_exit=False,  # `Observability.shutdown` has a timeout
    )
    telemetry = cache(lambda: Telemetry(registry))  # made with the first failure

    class CountedExporter(OTLPSpanExporter):
        """Counts spans that the collector did not accept; the SDK only logs them."""

        def export(self, spans: Any) -> Any:
            result, lost = SpanExportResult.FAILURE, f"the collector did not take {len(spans)} spans"
            try:
                result = super().export(spans)
            finally:
                if result is not SpanExportResult.SUCCESS:
                    telemetry().failed("traces", sys.exc_info()[1] or ConnectionError(lost))
            return result

    class CountedProcessor(BatchSpanProcessor):
        """Counts spans that the SDK drops because the collector is slow; the SDK only logs that."""

        def on_end(self, span: Any) -> None:
            inner = getattr(self, "_batch_processor", self)  # older versions have none
            waiting = getattr(inner, "_queue", None) or getattr(inner, "queue", ())
            full = waiting and len(waiting) == getattr(waiting, "maxlen", None)
            if full and span.context.trace_flags.sampled:
                telemetry().failed("traces", BufferError("too many spans wait for the collector"))
            super().on_end(span)

    exporter = CountedExporter(endpoint=None if endpoint is None else _traces_url(endpoint))
    provider.add_span_processor(CountedProcessor(exporter))
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        trace.set_tracer_provider(provider)
    return provider


def _traces_url(endpoint: str) -> str:
    endpoint = endpoint.rstrip("/")
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        # Do not quote the URL: it might hold a password.
        raise ValueError("otlp_endpoint must be an http:// or https:// URL, as http://localhost:4318")
    return endpoint if parts.path.endswith(_TRACES_PATH) else endpoint + _TRACES_PATH


def _formatter(service_name: str, instance_id: str) -> logging.Formatter:
    """One JSON object per record, with the `extra` fields, and genesis' event name as `event`."""

    def add_facts(_: Any, __: str, fields: Any) -> Any:
        record: logging.LogRecord = fields["_record"]
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        fields["timestamp"] = moment.isoformat(timespec="microseconds")
        fields["level"] = record.levelname.lower()
        fields["logger"] = record.name
        fields |= {"service.name": service_name, "service.instance.id": instance_id}
        # The span in which the application logs; genesis' own records already have one.
        if "trace_id" not in fields:
            fields |= ids_of(trace.get_current_span().get_span_context()) or {}
        return fields

    def keep_text(_: Any, __: str, fields: Any) -> Any:
        record: logging.LogRecord = fields["_record"]
        if record.name != "genesis" and "event" in vars(record):  # an application's own field
            fields["message"] = fields["event"]
        return fields

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.contextvars.merge_contextvars,
            keep_text,
            # Last, so that the record's `event` replaces its text.
            structlog.stdlib.ExtraAdder(),
        ],
        processors=[
            add_facts,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_json),
        ],
    )


def _json(fields: dict[str, Any], **options: Any) -> str:
    """Strict JSON, which lacks NaN, whatever the values are: no line must vanish."""
    try:
        return json.dumps(fields, allow_nan=False, **options)
    except Exception:  # write each value by itself, as text if it cannot be written otherwise
        return json.dumps({str(name): _plain(value, **options) for name, value in fields.items()})


def _plain(value: Any, **options: Any) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False, **options))
    except Exception:
        return safe_repr(value)
