"""An observed memory backend, and a queue on the sinks of the test."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
from opentelemetry import trace

from genesis import Queue
from genesis.observability import Telemetry
from genesis.observability.layer import ObservedBackend
from genesis.queue import InMemoryBackend
from tests.conftest import state_of


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
