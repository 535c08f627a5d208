"""The JSON logs that `configure` sets up: what joins them, and a stream that blocks or refuses."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import math
import os
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.observability import Telemetry, configure
from genesis.observability.logs import ThreadedStreamHandler
from tests.observability.conftest import run_alone
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_endpoint")


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


def test_a_level_that_the_application_has_set_since_stays() -> None:
    """`shutdown` undoes only what `configure` did."""
    own = logging.getLogger("genesis")
    before = own.level
    try:
        with configure("router", json_logs=True, log_stream=io.StringIO()):
            own.setLevel("ERROR")
        assert own.level == logging.ERROR
    finally:
        own.setLevel(before)


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


class BadRepr:
    def __repr__(self) -> str:
        raise ZeroDivisionError


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)
TOO_FEW = TypeError("not enough arguments for format string")
BAD = "<BadRepr: its repr raised ZeroDivisionError>"


@pytest.mark.parametrize(
    ("arguments", "extra", "expected"),
    [
        (("paid",), {"x": math.nan, "y": 3}, {"event": "paid", "x": "nan", "y": 3}),
        (("paid",), {"x": {b"k": 3}, "y": [3]}, {"event": "paid", "x": "{b'k': 3}", "y": [3]}),
        (("paid",), {"x": {(1, 2): 3}}, {"event": "paid", "x": "{(1, 2): 3}"}),
        (("paid",), {"x": CIRCLE}, {"event": "paid", "x": "[[...]]"}),
        (("paid",), {"x": BadRepr()}, {"event": "paid", "x": BAD}),
        (("paid",), {"event": "payment"}, {"event": "payment", "message": "paid"}),
        (("%s %s", "x"), {}, {"event": f"'%s %s' % ('x',): {TOO_FEW!r}"}),
        (
            ("%s", BadRepr()),
            {},
            {"event": f"'%s' % {BAD.replace('BadRepr', 'tuple')}: ZeroDivisionError()"},
        ),
        (("paid",), {"_record": 1}, {"level": "error", "logger": "app"}),
    ],
)
def test_no_line_of_the_application_vanishes(
    arguments: tuple[Any, ...], extra: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Each is one line of strict JSON, whatever is in it; values that are not JSON are text."""
    stream = io.StringIO()
    with configure("router", json_logs=True, log_stream=stream) as handle:
        assert handle.handler is not None
        record = logging.getLogger("app").makeRecord(
            "app", logging.ERROR, "app.py", 1, arguments[0], arguments[1:], None, extra=extra
        )
        handle.handler.handle(record)
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line, parse_constant=pytest.fail)
    assert {name: found[name] for name in expected} == expected


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
