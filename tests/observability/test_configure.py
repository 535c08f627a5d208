"""One call that sets up OTLP export and JSON logs, against a real HTTP receiver."""

from __future__ import annotations

import gzip
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.observability import Telemetry, configure
from tests.observability.conftest import run_alone

pytestmark = pytest.mark.usefixtures("no_endpoint")


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP receiver that decodes with the official messages."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.requests: list[ExportTraceServiceRequest] = []
        self.paths: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()

    @property
    def spans(self) -> dict[str, Any]:
        """By name."""
        return {
            span.name: span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }

    @property
    def resource(self) -> dict[str, str]:
        attributes = self.requests[0].resource_spans[0].resource.attributes
        return {attribute.key: attribute.value.string_value for attribute in attributes}


class _Receive(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.paths.add(self.path)
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        return


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    yield server
    server.close()


ONE_CALL = """
import asyncio
from genesis import Queue
from genesis.observability import configure

async def main():
    async with Queue() as queue:
        async with queue.slot("sales", item_id="call-1"):
            pass

with configure("router", instance_id="router-1"):
    asyncio.run(main())
"""


def test_one_call_sets_up_traces_and_logs(collector: Collector) -> None:
    """In a bare process: spans reach the collector with the resource, and agree with the log lines."""
    _, stderr = run_alone(ONE_CALL, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert collector.paths == {"/v1/traces"}
    assert collector.resource["service.name"] == "router"
    assert collector.resource["service.instance.id"] == "router-1"
    assert {"queue.acquire", "queue.enqueue", "queue.hold", "queue.release"} <= set(collector.spans)
    lines = [json.loads(line) for line in stderr.splitlines()]
    assert [line["event"] for line in lines] == ["enqueued", "granted", "released"]
    granted = lines[1]
    hold = collector.spans["queue.hold"]
    assert granted["trace_id"] == hold.trace_id.hex()
    assert granted["span_id"] == hold.span_id.hex()
    assert (granted["item_id"], granted["queue_id"]) == ("call-1", "sales")
    assert (granted["waited"], granted["level"], granted["logger"]) == (0.0, "info", "genesis")
    assert (granted["service.name"], granted["service.instance.id"]) == ("router", "router-1")
    assert granted["instance_id"]
    assert granted["timestamp"].endswith("+00:00")


def test_the_operators_name_is_in_the_traces_and_in_the_log(collector: Collector) -> None:
    """The log lines of a service are found by the name of its traces."""
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "of-the-operator"}
    _, stderr = run_alone(ONE_CALL, **variables)
    logged = {json.loads(line)["service.name"] for line in stderr.splitlines()}
    assert {collector.resource["service.name"]} == logged == {"of-the-operator"}


@pytest.mark.parametrize("of_the_operator", ["", "pod-1"])
def test_the_resource_names_the_host(of_the_operator: str, collector: Collector) -> None:
    """Without a host, Jaeger takes a `release` that outlasts its request for a clock skew."""
    attributes = of_the_operator and f"host.name={of_the_operator}"
    run_alone(ONE_CALL, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_RESOURCE_ATTRIBUTES=attributes)
    assert collector.resource["host.name"] == (of_the_operator or socket.gethostname())
    assert collector.resource["service.name"] == "router"


def test_the_end_of_the_process_flushes(collector: Collector) -> None:
    """An application that never calls shutdown loses no span when it ends in order."""
    program = ONE_CALL.replace("with configure(", "if configure(")
    run_alone(program, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert "queue.hold" in collector.spans


def test_without_an_endpoint_no_sdk_is_needed() -> None:
    """No endpoint, no traces: neither the SDK's tracing nor the exporter is imported."""
    program = ONE_CALL + "import sys\nprint(*sys.modules)\n"
    stdout, _ = run_alone(program)
    assert not {"opentelemetry.sdk.trace", "opentelemetry.exporter.otlp"} & set(stdout.split())


def test_importing_genesis_imports_no_sdk() -> None:
    """`import genesis` is free of the SDK's tracing, the exporter and its HTTP client."""
    stdout, _ = run_alone("import genesis, genesis.observability, sys\nprint(*sys.modules)")
    loaded = set(stdout.split())
    assert not {"opentelemetry.sdk.trace", "opentelemetry.exporter", "requests"} & loaded


def test_a_missing_sdk_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the exporter is not installed, the error says what to install, and nothing is set up."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    before = list(logging.getLogger("genesis").handlers)
    with pytest.raises(ImportError, match=r"pip install 'genesis-queue\[otel\]'"):
        configure("router", otlp_endpoint="http://127.0.0.1:1", json_logs=True)
    assert logging.getLogger("genesis").handlers == before


@pytest.mark.parametrize("suffix", ["", "/", "/v1/traces", "/v1/traces/"])
async def test_an_endpoint_may_be_given(
    suffix: str, collector: Collector, nothing_global: None
) -> None:
    """The collector's base URL is enough, and its traces URL is as good; shutdown flushes."""
    with configure("router", otlp_endpoint=collector.url + suffix, json_logs=False) as handle:
        telemetry = Telemetry(CollectorRegistry(), handle.tracer_provider)
        async with Queue(telemetry=telemetry) as queue, queue.slot("sales"):
            pass
        assert not collector.requests
    assert collector.paths == {"/v1/traces"}
    assert "queue.hold" in collector.spans
    assert handle.shutdown()


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 0), (1.0, 20)])
def test_the_ratio_samples_traces_that_begin_here(
    ratio: float, expected: int, collector: Collector, nothing_global: None
) -> None:
    """The ratio decides for a new trace, and a trace that came with the call decides for itself."""
    with configure(
        "router", otlp_endpoint=collector.url, sample_ratio=ratio, json_logs=False
    ) as handle:
        tracer = handle.tracer_provider.get_tracer("test")
        for number in range(20):
            tracer.start_span(f"own {number}").end()
        sampled = trace.SpanContext(1, 1, is_remote=True, trace_flags=trace.TraceFlags(1))
        parent = trace.set_span_in_context(trace.NonRecordingSpan(sampled))
        tracer.start_span("of a sampled caller", parent).end()
    own = [name for name in collector.spans if name.startswith("own")]
    assert len(own) == expected
    assert "of a sampled caller" in collector.spans


def test_a_provider_in_place_stays(collector: Collector) -> None:
    """It is not replaced, also by a second `configure`; a line of the log says how to use the other."""
    program = """
import genesis
from opentelemetry import trace
from genesis.observability import configure
genesis.Queue()  # gives the logger a handler that shows nothing
with configure("router") as first:
    pass
with configure("router") as second:
    assert trace.get_tracer_provider() is first.tracer_provider is not second.tracer_provider
"""
    _, stderr = run_alone(program, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    (line,) = stderr.splitlines()
    assert "Telemetry(tracer_provider=...)" in json.loads(line)["event"]


@pytest.mark.parametrize("state", ["refusing", "silent"])
def test_shutdown_is_bounded_without_a_collector(state: str, nothing_global: None) -> None:
    """A collector that is down, or never replies, costs the timeout, not minutes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if state == "silent":
            listener.listen()
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        handle = configure("router", otlp_endpoint=endpoint, json_logs=False)
        handle.tracer_provider.get_tracer("test").start_span("lost").end()
        began = time.monotonic()
        in_time = handle.shutdown(timeout=0.3)
        assert not in_time or state != "silent"  # the oldest SDK does not retry if it is refused
        assert time.monotonic() - began < 5.0
        handle.tracer_provider.get_tracer("test").start_span("afterwards").end()


def test_spans_that_a_slow_collector_makes_the_sdk_drop_are_counted(
    nothing_global: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each span beyond those that the SDK keeps for a collector that does not reply."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    registry = CollectorRegistry()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        handle = configure("router", otlp_endpoint=endpoint, json_logs=False, registry=registry)
        tracer = handle.tracer_provider.get_tracer("test")
        for _ in range(10):
            tracer.start_span("exported").end()
        connection, _ = listener.accept()  # the exporter has taken these
        with connection:
            for _ in range(13):
                tracer.start_span("kept, but for the oldest").end()
            lost = registry.get_sample_value("genesis_telemetry_errors_total", {"sink": "traces"})
            assert lost == 3
            handle.shutdown(timeout=0.0)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"service_name": ""}, "service_name"),
        ({"sample_ratio": 1.5}, "sample_ratio"),
        ({"sample_ratio": float("nan")}, "sample_ratio"),
        ({"log_level": "LOUD"}, "log_level"),
        ({"log_level": None}, "log_level"),
        ({"shutdown_timeout": -1.0}, "shutdown_timeout"),
        ({"otlp_endpoint": "user:secret@collector"}, "otlp_endpoint"),
    ],
)
def test_bad_arguments_are_errors_at_once(wrong: dict[str, Any], named: str) -> None:
    """A bad argument is named, and its value is not shown if it might hold a password."""
    with pytest.raises(ValueError, match=named) as raised:
        configure(**{"service_name": "router", "json_logs": False, **wrong})
    assert "secret" not in str(raised.value)
