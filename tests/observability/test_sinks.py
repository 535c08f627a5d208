"""Sinks as in real applications: a dead collector, loggers of every kind, a port in use."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.config
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry

from genesis import Queue
from genesis.observability import ObservabilityServer, Telemetry, asgi_app, configure, names
from tests.support.asgi import request
from tests.support.waiting import wait_until


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def test_the_first_failure_of_each_kind_is_logged(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """With its traceback; further errors are only counted."""
    telemetry = Telemetry(registry)
    for error in (ValueError, ValueError, KeyError):
        try:
            raise error("boom")
        except Exception:
            telemetry.failed("traces")
    told = [r for r in caplog.records if r.name == "genesis" and r.exc_info]
    assert [r.exc_info[0] for r in told if r.exc_info] == [ValueError, KeyError]
    assert value(registry, names.TELEMETRY_ERRORS, sink="traces") == 3


async def test_a_collector_that_is_dead_is_counted(
    registry: CollectorRegistry, nothing_global: None
) -> None:
    """Every export that is refused is a failure of the sink `traces`."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    handle = configure("router", otlp_endpoint="http://127.0.0.1:9", json_logs=False, registry=registry)
    telemetry = Telemetry(registry, handle.tracer_provider)
    async with Queue(telemetry=telemetry) as queue, queue.slot("sales"):
        pass
    await asyncio.to_thread(handle.shutdown, 10.0)
    await wait_until(lambda: value(registry, names.TELEMETRY_ERRORS, sink="traces"), "it is counted")


@pytest.mark.parametrize("kind", ["adapter", "async"])
async def test_loggers_as_applications_have_them_lose_no_event(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.INFO, "app")
    stdlib = logging.getLogger("app")
    logger: Any = logging.LoggerAdapter(stdlib, {"tenant": 7})
    if kind == "async":
        logger = structlog.wrap_logger(
            stdlib,
            wrapper_class=structlog.stdlib.AsyncBoundLogger,
            processors=[structlog.stdlib.render_to_log_kwargs],
        )
    async with Queue(telemetry=Telemetry(registry, logger=logger)) as queue, queue.slot("sales"):
        pass
    told = [r for r in caplog.records if r.name == "app" and r.levelno >= logging.INFO]
    assert len(told) >= 3
    assert value(registry, names.TELEMETRY_ERRORS, sink="logs") == 0
    if kind == "adapter":
        assert {r.__dict__["tenant"] for r in told} == {7}


async def test_structlog_configured_after_the_telemetry_loses_no_event(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """A module makes the Queue, and `main` configures AsyncBoundLogger: nothing awaited its `log`."""
    caplog.set_level(logging.INFO, "app")
    queue = Queue(telemetry=Telemetry(registry, logger=structlog.get_logger("app")))
    try:
        structlog.configure(
            wrapper_class=structlog.stdlib.AsyncBoundLogger,
            logger_factory=structlog.stdlib.LoggerFactory(),
            processors=[structlog.stdlib.render_to_log_kwargs],
        )
        async with queue, queue.slot("sales"):
            pass
    finally:
        structlog.reset_defaults()
    assert [r.message for r in caplog.records if r.name == "app"][:2] == ["enqueued", "granted"]


def test_a_logger_whose_log_is_a_coroutine_is_refused() -> None:
    class Foreign:
        async def log(self, level: int, event: str, **fields: Any) -> None:
            """Nobody would await it."""

    with pytest.raises(TypeError, match="coroutine"):
        Telemetry(CollectorRegistry(), logger=Foreign())


async def test_dict_config_after_the_queue_silences_nothing(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """`disable_existing_loggers` is true unless an application says otherwise."""
    queue = Queue(telemetry=Telemetry(registry))
    logging.getLogger("genesis").disabled = True  # all that dictConfig does to it
    caplog.set_level(logging.INFO, "genesis")
    async with queue.slot("sales", item_id="told"):
        pass
    assert [r.__dict__["event"] for r in caplog.records if r.__dict__.get("item_id") == "told"]


async def test_openmetrics_2_is_not_promised() -> None:
    """prometheus_client writes OpenMetrics 1.0 and labels it with whatever version was asked for."""
    app = asgi_app(registry=CollectorRegistry())
    for asked, given in (
        ("application/openmetrics-text;version=2.0.0,text/plain;version=0.0.4;q=0.5", "text/plain"),
        ("application/openmetrics-text;version=1.0.0", "application/openmetrics-text; version=1.0.0"),
    ):
        reply = await request(app, "/metrics", headers={"accept": asked})
        assert reply.headers["content-type"].startswith(given)


async def test_a_port_in_use_is_named_with_the_way_out() -> None:
    async with ObservabilityServer(registry=CollectorRegistry(), port=0) as server:
        with pytest.raises(OSError, match=rf"port {server.port} .* port=0"):
            await ObservabilityServer(registry=CollectorRegistry(), port=server.port).start()


def test_opentelemetrys_variables_come_first(
    monkeypatch: pytest.MonkeyPatch, nothing_global: None
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "theirs")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    handle = configure("ours", otlp_endpoint="http://127.0.0.1:9", json_logs=False)
    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(handle.shutdown, 1.0)
        provider = handle.tracer_provider
        assert provider.resource.attributes["service.name"] == "theirs"
        assert not provider.get_tracer("x").start_span("x").is_recording()
