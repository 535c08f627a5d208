"""The server and the ASGI application for `/metrics`, `/health` and `/ready`."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.openmetrics import parser
from prometheus_client.registry import Collector

from genesis import Queue
from genesis.observability import ObservabilityServer, Telemetry, asgi_app, http
from tests.observability.conftest import run_alone
from tests.support.asgi import request
from tests.support.http import aask
from tests.support.waiting import wait_until

OPEN_METRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


def parse(text: str) -> Any:
    return parser.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]


def server_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if "genesis-server" in one.name]


async def test_it_serves_three_paths_and_nothing_else(
    telemetry: Telemetry, registry: CollectorRegistry
) -> None:
    """Metrics, health and readiness answer; any other path is 404, any other method not implemented."""
    async with (
        Queue(telemetry=telemetry) as queue,
        ObservabilityServer(queue, registry, port=0) as server,
    ):
        async with queue.slot("sales"):
            metrics = await aask(server.port, "/metrics?x=1")
        assert metrics.status == 200
        assert metrics.headers["content-type"].startswith("text/plain")
        assert b'genesis_queue_holding{queue="sales"} 1.0' in metrics.body
        assert (await aask(server.port, "/health")).status == 200
        assert (await aask(server.port, "/ready")).status == 200
        for path in ("/", "/metrics/", "/metrics/x", "/favicon.ico", "/../metrics", "//[x"):
            assert (await aask(server.port, path)).status == 404, path
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"):
            assert (await aask(server.port, "/metrics", method)).status == 501
        assert "python" not in metrics.headers["server"].lower()


async def test_head_has_the_length_without_the_body(registry: CollectorRegistry) -> None:
    """HEAD answers with GET's headers."""
    async with ObservabilityServer(registry=registry, port=0) as server:
        head, get = [await aask(server.port, "/health", method) for method in ("HEAD", "GET")]
    assert (head.body, get.body) == (b"", b"healthy\n")
    assert head.headers["content-length"] == get.headers["content-length"] == "8"


async def test_open_metrics_bear_exemplars(telemetry: Telemetry, registry: CollectorRegistry) -> None:
    """A client that asks for OpenMetrics gets it, with the trace and span of a wait and of a hold."""
    async with (
        Queue(telemetry=telemetry) as queue,
        ObservabilityServer(queue, registry, port=0) as server,
    ):
        async with queue.slot("sales"):
            pass
        reply = await aask(server.port, "/metrics", headers=OPEN_METRICS)
    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    assert reply.body.endswith(b"# EOF\n")
    families = {family.name: family for family in parse(reply.body.decode())}
    for name in ("genesis_queue_wait_seconds", "genesis_queue_hold_seconds"):
        exemplars = [sample.exemplar for sample in families[name].samples if sample.exemplar]
        assert exemplars
        assert set(exemplars[0].labels) == {"trace_id", "span_id"}


async def test_it_listens_on_the_loopback_only_by_default() -> None:
    """The default is 127.0.0.1, another address is taken when given, and an empty one is refused."""
    async with ObservabilityServer(registry=CollectorRegistry(), port=0) as server:
        assert server.host == "127.0.0.1"
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.2", server.port)) != 0
    everywhere = ObservabilityServer(registry=CollectorRegistry(), host="0.0.0.0", port=0)
    async with everywhere:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.2", everywhere.port)) == 0
    with pytest.raises(ValueError, match="host is empty"):
        ObservabilityServer(host="")


async def test_a_request_with_a_body_ends_its_connection(registry: CollectorRegistry) -> None:
    """Bytes after an unread body are not treated as another request."""
    async with ObservabilityServer(registry=registry, port=0) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        hidden = b"GET /health HTTP/1.1\r\n\r\n"
        head = b"GET /nothing HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(hidden)
        writer.write(head + hidden)
        said = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert said.count(b"HTTP/1.0") == 1
    assert b" 404 " in said


@pytest.mark.parametrize(
    "said", [b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n"]
)
async def test_nonsense_is_refused_and_the_next_is_served(
    said: bytes, registry: CollectorRegistry
) -> None:
    """Bytes that are not HTTP get a 4xx or a closed connection, and affect no other client."""
    async with ObservabilityServer(registry=registry, port=0) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(said)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert b"200" not in answer[:15]
        assert (await aask(server.port, "/health")).status == 200


async def test_stopping_is_at_once_and_leaves_no_thread(registry: CollectorRegistry) -> None:
    """A response in progress completes; the port is free, and the server can start again."""

    class Slow:
        def collect(self) -> Any:
            collecting.set()
            assert stopped.wait(10)
            return []

    collecting, stopped = threading.Event(), threading.Event()
    registry.register(Slow())
    server = ObservabilityServer(registry=registry, port=0)
    await server.start()
    port = server.port
    asking = asyncio.create_task(aask(port, "/metrics"))
    await asyncio.to_thread(collecting.wait, 10)
    began = time.monotonic()
    await server.stop()
    assert time.monotonic() - began < 5.0  # the response is held back for 10 s
    stopped.set()
    assert (await asking).status == 200
    await wait_until(lambda: not server_threads(), "no thread of the server is left")
    await server.stop()
    async with ObservabilityServer(registry=registry, port=port):
        assert (await aask(port, "/health")).status == 200


async def test_connections_are_bounded(registry: CollectorRegistry) -> None:
    """Clients that hold connections open get no more than so many threads, and none once they go."""
    async with ObservabilityServer(registry=registry, port=0) as server:
        before = threading.active_count()
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(60)]
        await wait_until(lambda: threading.active_count() >= before + 32, "32 are served")
        (closed, *_), pending = await asyncio.wait(
            [asyncio.ensure_future(reader.read()) for reader, _ in held],
            return_when=asyncio.FIRST_COMPLETED,
        )
        assert closed.exception() or closed.result() == b""
        assert threading.active_count() <= before + 33
        for _, writer in held:
            writer.close()
        await asyncio.wait(pending)
        for one in pending:
            one.exception()

        async def served() -> bool:
            try:
                return (await aask(server.port, "/health")).status == 200
            except OSError:
                return False

        await wait_until(served, "it serves again")


async def test_slow_clients_do_not_keep_others_out(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When all connections are taken, one that is older than the timeout makes room: the oldest."""
    clock = [1000.0]
    monkeypatch.setattr(http, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    async with ObservabilityServer(registry=registry, port=0) as server:
        slow = []
        for _ in range(32):
            slow.append(await asyncio.open_connection("127.0.0.1", server.port))
            slow[-1][1].write(b"GET /health HTTP/1.1\r\n")  # and never the end
        with pytest.raises(OSError):  # it is closed, or reset if the request arrives later
            await aask(server.port, "/health")
        clock[0] += 11.0
        assert (await aask(server.port, "/health")).status == 200
        (reader, _), *younger = slow
        assert await asyncio.wait_for(reader.read(), 10) == b""
        assert not any(reader.at_eof() for reader, _ in younger)
        for _, writer in slow:
            writer.close()


async def test_threads_that_hang_in_an_answer_are_bounded(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that makes room counts until its thread has ended."""
    clock = [1000.0]
    monkeypatch.setattr(http, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    let_go = threading.Event()
    hanging: list[int] = []

    class Hangs(Collector):
        def describe(self) -> list[Metric]:
            return []

        def collect(self) -> list[Metric]:
            hanging.append(threading.get_ident())
            let_go.wait(60)
            return []

    registry.register(Hangs())
    writers: list[asyncio.StreamWriter] = []

    async def scrape(port: int) -> None:
        """Until the answer hangs, or the connection is refused."""
        before = len(hanging)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        read = asyncio.create_task(reader.read())
        await wait_until(lambda: len(hanging) > before or read.done(), "it is seen")
        if read.done():
            read.exception()
        clock[0] += 11.0

    async with ObservabilityServer(registry=registry, port=0) as server:
        try:
            for _ in range(80):
                await scrape(server.port)
            assert 32 <= len(hanging) <= 64
        finally:
            let_go.set()
            for writer in writers:
                writer.close()


MULTIPROCESS = """
import asyncio, urllib.request
from genesis import Queue
from genesis.observability import ObservabilityServer

async def main():
    async with Queue() as queue, ObservabilityServer(queue, port=0) as server, queue.slot("sales"):
        url = f"http://127.0.0.1:{server.port}/metrics"
        print((await asyncio.to_thread(lambda: urllib.request.urlopen(url).read())).decode())

asyncio.run(main())
"""


def test_multiprocess_mode_adds_the_processes_up(tmp_path: Path) -> None:
    """Histograms have the counts of processes that have ended, too; gauges those of live ones only."""
    for processes in (1, 2):
        stdout, _ = run_alone(MULTIPROCESS, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
        lines = stdout.splitlines()
        wait = f'genesis_queue_wait_seconds_count{{outcome="granted",queue="sales"}} {processes}.0'
        assert wait in lines
        assert [line for line in lines if line.startswith('genesis_queue_holding{queue="sales"')] == [
            'genesis_queue_holding{queue="sales"} 1.0'
        ]


async def test_a_registry_that_raises_is_a_500_and_no_more(registry: CollectorRegistry) -> None:
    """A failing collector affects only its own scrape."""

    class Broken:
        def collect(self) -> Any:
            raise RuntimeError("a secret")

    registry.register(Broken())
    async with ObservabilityServer(registry=registry, port=0) as server:
        broken = await aask(server.port, "/metrics")
        assert (broken.status, b"secret" in broken.body) == (500, False)
        assert (await aask(server.port, "/health")).status == 200


@pytest.mark.parametrize(
    ("path", "root", "status"),
    [
        ("/metrics", "", 200),
        ("/ops/metrics", "/ops", 200),  # ASGI's rule: the path has the mount's prefix
        ("/metrics", "/ops", 200),  # frameworks that cut it off
        ("/ops/health", "/ops/", 200),
        ("/ops/ready", "/ops", 200),
        ("/opsmetrics", "/ops", 404),
        ("/ops", "/ops", 404),
        ("/", "", 404),
        ("/ops/metrics", "", 404),
    ],
)
async def test_the_asgi_app_is_mounted_anywhere(path: str, root: str, status: int) -> None:
    """The three paths are found below the mount, and only there."""
    app = asgi_app(registry=CollectorRegistry())
    assert (await request(app, path, root_path=root)).status == status


async def test_the_asgi_app_negotiates_and_refuses(
    telemetry: Telemetry, registry: CollectorRegistry
) -> None:
    """OpenMetrics with exemplars on request, HEAD without a body, other methods 405."""
    async with Queue(telemetry=telemetry) as queue:
        async with queue.slot("sales"):
            pass
        app = asgi_app(queue, registry)
        accept = {"accept": OPEN_METRICS["Accept"]}
        reply = await request(app, "/metrics", headers=accept)
        assert b"trace_id=" in reply.body
        assert reply.headers["content-length"] == str(len(reply.body))
        head = await request(app, "/metrics", "HEAD", headers=accept)
        assert (head.status, head.body) == (200, b"")
        assert (await request(app, "/ready")).status == 200
        assert (await request(app, "/metrics", "POST")).status == 405


async def test_the_asgi_app_closes_websockets_and_refuses_other_scopes() -> None:
    """The lifespan is that of the application it is mounted in."""
    app = asgi_app(registry=CollectorRegistry())
    sent: list[str] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await app({"type": "websocket", "path": "/metrics"}, receive, send)
    assert sent == ["websocket.close"]
    with pytest.raises(ValueError, match="lifespan"):
        await app({"type": "lifespan"}, receive, send)
