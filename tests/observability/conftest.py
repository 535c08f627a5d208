"""An observed memory backend, a queue on the sinks of the test, a clock, programs that run alone."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from opentelemetry import trace
from prometheus_client import CollectorRegistry, generate_latest

from genesis import Queue
from genesis.observability import Telemetry
from genesis.observability.layer import ObservedBackend
from genesis.queue import InMemoryBackend
from tests.conftest import state_of


class Clock:
    """A clock that advances only on request."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def series(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if line[0] != "#"]


@pytest.fixture
def inner() -> InMemoryBackend:
    return InMemoryBackend()


@pytest.fixture
def observed(inner: InMemoryBackend, telemetry: Telemetry) -> ObservedBackend:
    return ObservedBackend(inner, telemetry, "1.2.3")


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The names of the log events so far."""
    caplog.set_level(logging.DEBUG, "genesis.tests")
    return lambda: [record.__dict__["event"] for record in caplog.records if "event" in record.__dict__]


@pytest.fixture
def queue(telemetry: Telemetry) -> Iterator[Queue]:
    queue = Queue(telemetry=telemetry)
    yield queue
    assert not state_of(queue)


@pytest.fixture
def nothing_global(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what a test sets for the whole process, such as the tracer provider."""
    taken = trace.ProxyTracerProvider()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: taken)
    monkeypatch.setattr(trace, "set_tracer_provider", lambda _: None)


@pytest.fixture
def no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry's own variables name no collector."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def run_alone(program: str, **environment: str) -> tuple[str, str]:
    """Run a program in a fresh process. Returns its stdout and stderr."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout, ran.stderr
