"""One call that sets up OTLP export and JSON logs, against a real HTTP receiver."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import structlog
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.observability import Telemetry, configure
from genesis.observability.logs import ThreadedStreamHandler
from tests.support.waiting import wait_until


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


@pytest.fixture(autouse=True)
def no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("suffix", ["", "/", "/v1/traces"])
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
    """An application's own tracer provider is not replaced, and a warning says how to use the other."""
    program = """
import logging
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from genesis.observability import configure
own = TracerProvider()
trace.set_tracer_provider(own)
with configure("router") as handle:
    assert trace.get_tracer_provider() is own
    assert handle.tracer_provider is not own
"""
    _, stderr = run_alone(program, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert "Telemetry(tracer_provider=...)" in stderr


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
        assert not handle.shutdown(timeout=0.3)
        assert time.monotonic() - began < 1.0
        handle.tracer_provider.get_tracer("test").start_span("afterwards").end()


def test_logging_that_is_there_is_left_alone(nothing_global: None) -> None:
    """With a handler on the root logger (pytest has one) nothing is added and no level changes."""
    root, own = logging.getLogger(), logging.getLogger("genesis")
    assert root.handlers
    before = (list(root.handlers), root.level, list(own.handlers), own.level)
    with configure("router", log_level="DEBUG") as handle:
        assert handle.handler is None
        assert (list(root.handlers), root.level, list(own.handlers), own.level) == before


def test_logging_that_is_there_is_joined_when_asked() -> None:
    """On request the logger genesis gets a JSON handler; shutdown removes it and restores the level."""
    root, own = logging.getLogger(), logging.getLogger("genesis")
    before = (list(root.handlers), root.level, list(own.handlers), own.level)
    stream = io.StringIO()
    with configure("router", json_logs=True, log_level="WARNING", log_stream=stream):
        own.warning("%s", "text", extra={"event": "timeout", "item_id": 'a"\n\u2028b'})
        own.info("not this")
    own.warning("nor this")
    (line,) = stream.getvalue().splitlines()
    assert (json.loads(line)["event"], json.loads(line)["item_id"]) == ("timeout", 'a"\n\u2028b')
    assert (list(root.handlers), root.level, list(own.handlers), own.level) == before


def test_records_of_the_application_are_json_too() -> None:
    """Plain logging, structlog over it, bound context, exceptions and spans all make one JSON line."""
    program = """
import logging, structlog
from opentelemetry import trace
from genesis.observability import configure

configure("router")
structlog.configure(
    processors=[structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
    logger_factory=structlog.stdlib.LoggerFactory(),
)
context = trace.SpanContext(1, 2, is_remote=False)
with trace.use_span(trace.NonRecordingSpan(context)):
    logging.getLogger("app").info("hello %s", "world")
structlog.get_logger("app").info("said", thing=object)
structlog.contextvars.bind_contextvars(tenant="t1")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("app").exception("failed")
"""
    _, stderr = run_alone(program)
    plain, structured, failed = [json.loads(line) for line in stderr.splitlines()]
    assert (plain["event"], plain["trace_id"], plain["span_id"]) == (
        "hello world",
        f"{1:032x}",
        f"{2:016x}",
    )
    assert (structured["event"], structured["thing"]) == ("said", "<class 'object'>")
    assert (failed["event"], failed["tenant"], failed["level"]) == ("failed", "t1", "error")
    assert "ZeroDivisionError" in failed["exception"]


async def test_a_log_stream_that_blocks_delays_no_call(nothing_global: None) -> None:
    """Lines for a full pipe are dropped and counted; calls and the shutdown continue."""
    reading, writing = os.pipe()
    registry = CollectorRegistry()
    lines = 3 * 4_000
    with os.fdopen(reading) as pipe, os.fdopen(writing, "w") as stream:
        handle = configure("router", json_logs=True, log_stream=stream)
        async with Queue(telemetry=Telemetry(registry)) as queue:
            for number in range(lines // 3):
                async with queue.slot("sales", item_id=f"call-{number}"):
                    pass
        assert not handle.shutdown(timeout=0.2)
        dropped = registry.get_sample_value("genesis_telemetry_errors_total", {"sink": "logs"})
        assert dropped is not None
        assert 0 < dropped < lines
        for _ in range(lines - int(dropped)):
            json.loads(await asyncio.to_thread(pipe.readline))
        assert handle.handler is not None
        assert handle.handler.stop(timeout=5)


async def test_a_log_stream_that_refuses_is_counted_and_reaches_no_call(nothing_global: None) -> None:
    """A broken pipe costs log lines, not calls; what the application logs itself never raises."""
    reading, writing = os.pipe()
    os.close(reading)
    registry = CollectorRegistry()
    stream = os.fdopen(writing, "w")
    handle = configure("router", json_logs=True, log_stream=stream)

    def counted() -> float | None:
        return registry.get_sample_value("genesis_telemetry_errors_total", {"sink": "logs"})

    async with Queue(telemetry=Telemetry(registry)) as queue:

        async def call() -> float | None:
            async with queue.slot("sales"):
                logging.getLogger("genesis.application").error("not raised either")
            return counted()

        await wait_until(call, "a line that the stream refused is counted")
    assert handle.shutdown()
    with pytest.raises(BrokenPipeError):
        stream.close()


async def test_a_write_error_is_raised_with_the_next_line_of_genesis() -> None:
    """A line of the application, which never raises, does not discard the pending error."""

    class RefusesOnce(io.StringIO):
        refused = False

        def write(self, text: str) -> int:
            if not self.refused:
                self.refused = True
                raise OSError("no space left")
            return super().write(text)

    def record(name: str) -> logging.LogRecord:
        return logging.makeLogRecord({"name": name, "msg": f"of {name}"})

    stream = RefusesOnce()
    handler = ThreadedStreamHandler(stream)
    handler.emit(record("genesis"))
    handler.emit(record("app"))
    await wait_until(lambda: "of app" in stream.getvalue(), "the second line is written")
    with pytest.raises(OSError, match="no space left"):
        handler.emit(record("genesis"))
    handler.emit(record("genesis"))
    assert handler.stop(timeout=5)
    assert stream.getvalue() == "of app\nof genesis\nof genesis\n"


def test_a_forked_process_writes_its_own_lines() -> None:
    """A server that forks its workers after `configure` has the logs of all of them, each line once."""
    program = """
import logging, os, warnings
from genesis.observability import configure

warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads
handle = configure("router", json_logs=True)
log = logging.getLogger("app")
log.warning("before")
if (child := os.fork()) == 0:
    log.warning("in the child")
    os._exit(not handle.shutdown())
assert os.waitpid(child, 0)[1] == 0
log.warning("after")
"""
    _, stderr = run_alone(program)
    told = [json.loads(line)["event"] for line in stderr.splitlines()]
    assert sorted(told) == ["after", "before", "in the child"]


def test_structlogs_global_set_up_is_untouched() -> None:
    """Neither setting up nor shutting down configures structlog."""
    before = structlog.get_config()
    with configure("router", json_logs=True, log_stream=io.StringIO()):
        assert structlog.get_config() == before
        assert not structlog.is_configured()
    assert structlog.get_config() == before


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
