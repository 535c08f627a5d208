"""The server and the ASGI application for `/metrics`, `/health` and `/ready`."""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics import parser

from genesis import Queue
from genesis.observability import ObservabilityServer, Telemetry, asgi_app
from genesis.queue import RedisBackend
from tests.support.asgi import Reply, request
from tests.support.redis_server import RedisServer
from tests.support.waiting import quiesce, wait_until

OPEN_METRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


def ask(port: int, path: str, method: str = "GET", headers: Any = None) -> Reply:
    """Send one request on a new connection. Blocks."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers=headers or {})
        return read_reply(connection)
    finally:
        connection.close()


def read_reply(connection: http.client.HTTPConnection) -> Reply:
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Reply(response.status, headers, response.read())


def parse(text: str) -> Any:
    return parser.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]


async def aask(*arguments: Any, **options: Any) -> Reply:
    return await asyncio.to_thread(ask, *arguments, **options)


def server_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if "genesis-server" in one.name]


class Failing:
    """A queue whose backend fails with a secret in the error."""

    async def ping(self) -> None:
        raise ConnectionError("redis://user:secret@example.invalid:6379 is down")


class Silent:
    """A queue whose backend never answers."""

    async def ping(self) -> None:
        await asyncio.Event().wait()


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
    """A client that asks for OpenMetrics gets it, with the trace and span of a wait."""
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
    wait = families["genesis_queue_wait_seconds"]
    exemplars = [sample.exemplar for sample in wait.samples if sample.exemplar]
    assert exemplars
    assert set(exemplars[0].labels) == {"trace_id", "span_id"}


async def test_a_blocked_loop_is_alive_and_not_ready(registry: CollectorRegistry) -> None:
    """While the event loop is blocked, metrics and health are served, and /ready names the reason."""
    async with (
        Queue(telemetry=Telemetry(registry)) as queue,
        ObservabilityServer(queue, registry, port=0, ready_timeout=0.2) as server,
    ):
        # Asked from within the loop: it is blocked for as long as each request takes.
        assert ask(server.port, "/health").status == 200
        assert ask(server.port, "/metrics").status == 200
        ready = ask(server.port, "/ready")
        assert (ready.status, ready.body) == (
            503,
            b"not ready: the event loop did not answer within 0.2 s\n",
        )
        assert (await aask(server.port, "/ready")).status == 200


@pytest.mark.parametrize("how", ["server", "asgi"])
async def test_readiness_tells_no_secret(how: str, registry: CollectorRegistry) -> None:
    """A failing and a silent backend are 503, with the kind of the error and not its text."""
    for queue, expected in ((Failing(), b"ConnectionError"), (Silent(), b"did not answer")):
        if how == "server":
            async with ObservabilityServer(queue, registry, port=0, ready_timeout=0.1) as server:
                reply = await aask(server.port, "/ready")
        else:
            reply = await request(asgi_app(queue, registry, ready_timeout=0.1), "/ready")
        assert reply.status == 503
        assert expected in reply.body
        assert b"secret" not in reply.body


async def test_readiness_follows_redis(own_redis: RedisServer, registry: CollectorRegistry) -> None:
    """Ready while Redis answers, not while it is gone, ready again when it is back."""
    backend = RedisBackend(own_redis.url, lease=2.0)
    async with (
        Queue(backend, telemetry=Telemetry(registry)) as queue,
        ObservabilityServer(queue, registry, port=0) as server,
    ):

        async def status() -> int:
            return (await aask(server.port, "/ready")).status

        assert await status() == 200
        own_redis.kill()
        gone = await aask(server.port, "/ready")
        assert gone.status == 503
        assert str(own_redis.port).encode() not in gone.body
        own_redis.start()

        async def ready() -> bool:
            return await status() == 200

        await wait_until(ready, "the server is ready again")


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
    assert time.monotonic() - began < 1.5
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


MULTIPROCESS = """
import asyncio, os, sys, urllib.request
from genesis import Queue
from genesis.observability import ObservabilityServer

async def main():
    async with Queue() as queue, ObservabilityServer(queue, port=0) as server:
        async with queue.slot(sys.argv[1]):
            pass
        url = f"http://127.0.0.1:{server.port}/metrics"
        print((await asyncio.to_thread(lambda: urllib.request.urlopen(url).read())).decode())

asyncio.run(main())
"""


def test_multiprocess_mode_serves_every_process(tmp_path: Path) -> None:
    """With PROMETHEUS_MULTIPROC_DIR one process' endpoint has the other's counts, too, once each."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for name in ("one", "two"):
        ran = subprocess.run(
            [sys.executable, "-c", MULTIPROCESS, name],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
    for name in ("one", "two"):
        line = f'genesis_queue_wait_seconds_count{{outcome="granted",queue="{name}"}} 1.0'
        assert line in ran.stdout


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


async def test_a_client_that_hangs_up_leaves_no_ping_behind() -> None:
    """ASGI servers cancel the application then; the ping to a backend that hangs ends with it."""
    ended = asyncio.Event()

    class Hanging:
        async def ping(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    asking = asyncio.create_task(request(asgi_app(Hanging(), CollectorRegistry()), "/ready"))
    await quiesce()
    asking.cancel()
    await asyncio.wait_for(ended.wait(), 1)


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


@pytest.mark.parametrize("how", ["server", "asgi"])
async def test_a_draining_queue_is_not_ready(how: str, registry: CollectorRegistry) -> None:
    """The load balancer sends no more calls to a process that is about to stop."""
    async with Queue(telemetry=Telemetry(registry)) as queue:
        await queue.drain(0)
        if how == "server":
            async with ObservabilityServer(queue, registry, port=0) as server:
                reply = await aask(server.port, "/ready")
        else:
            reply = await request(asgi_app(queue, registry), "/ready")
    assert (reply.status, reply.body) == (503, b"not ready: the queue is draining\n")


@pytest.mark.parametrize("make", [ObservabilityServer, asgi_app])
def test_a_timeout_that_is_not_positive_is_an_error(make: Callable[..., Any]) -> None:
    """A ping that has no time would never be answered."""
    with pytest.raises(ValueError, match="ready_timeout"):
        make(ready_timeout=0)
