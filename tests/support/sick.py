"""Failing sinks: a registry, tracers and loggers that raise on every call."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from prometheus_client import CollectorRegistry

from genesis.observability import Telemetry

__all__ = ["SICK", "SickThing", "all_sick", "fail", "sick_metrics"]


class SickError(Exception):
    """The error of a failing sink."""


def fail(*args: Any, **options: Any) -> Any:
    raise SickError


class SickThing:
    """An object whose every method raises."""

    def __getattr__(self, name: str) -> Any:
        return fail


class SickProvider:
    """A tracer provider whose tracer raises."""

    def get_tracer(self, *args: Any, **options: Any) -> Any:
        return SickThing()


class SickProviderOutright:
    """A tracer provider that raises instead of returning a tracer."""

    get_tracer = fail


class SickSpanProvider:
    """A tracer provider whose spans raise at every call."""

    def get_tracer(self, *args: Any, **options: Any) -> Any:
        return self

    def start_span(self, *args: Any, **options: Any) -> Any:
        return SickThing()


class SickProcessor(SpanProcessor):
    on_start = fail
    on_end = fail


class SickRegistry(CollectorRegistry):
    register = fail


class SickHandler(logging.Handler):
    emit = fail


def sick_processor_provider() -> TracerProvider:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SickProcessor())
    return provider


def sick_logger() -> logging.Logger:
    logger = logging.Logger("sick", logging.DEBUG)
    logger.addHandler(SickHandler())
    return logger


def sick_level_logger() -> logging.Logger:
    logger = logging.Logger("sick", logging.DEBUG)
    logger.isEnabledFor = fail  # type: ignore[method-assign]
    return logger


def sick_metrics(registry: CollectorRegistry) -> Telemetry:
    """A Telemetry whose instruments raise, except the counter of such failures."""
    telemetry = Telemetry(registry)
    counter = telemetry.instruments.telemetry_errors

    class SickInstruments(SickThing):
        telemetry_errors = counter

    telemetry._instruments = SickInstruments()  # type: ignore[assignment]
    return telemetry


SICK: dict[str, tuple[str, Callable[[CollectorRegistry], Telemetry]]] = {
    "instruments": ("metrics", sick_metrics),
    "registry": ("", lambda _: Telemetry(SickRegistry())),
    "provider": ("traces", lambda r: Telemetry(r, SickProviderOutright())),  # type: ignore[arg-type]
    "tracer": ("traces", lambda r: Telemetry(r, SickProvider())),  # type: ignore[arg-type]
    "span": ("traces", lambda r: Telemetry(r, SickSpanProvider())),  # type: ignore[arg-type]
    "processor": ("traces", lambda r: Telemetry(r, sick_processor_provider())),
    "logger": ("logs", lambda r: Telemetry(r, logger=sick_logger())),
    "level": ("logs", lambda r: Telemetry(r, logger=sick_level_logger())),
    "structlog": ("logs", lambda r: Telemetry(r, logger=SickThing())),
    "label": ("label", lambda r: Telemetry(r, queue_label=fail)),
}


def all_sick(registry: CollectorRegistry) -> Telemetry:
    """Instruments, tracer and logger that raise on every call; only the failures are counted."""
    sick = sick_metrics(registry)
    telemetry = Telemetry(registry, SickProvider(), sick_logger())  # type: ignore[arg-type]
    telemetry._instruments = sick._instruments
    return telemetry
