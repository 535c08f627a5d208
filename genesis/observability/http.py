"""`/metrics`, `/health` and `/ready`, as a separate server or as an ASGI application to mount.

The server is the standard library's `http.server`. It runs in threads, not in the application's event
loop, because it matters most when that loop is blocked: a thread still serves the metrics, and `/ready`
fails because it needs the loop. Rendering ten thousand series takes a good part of a second, which must
not delay calls. TLS, compression and persistent connections are left to a reverse proxy.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import logging
import math
import re
import selectors
import socket
import socketserver
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple, Protocol

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder

from genesis.exceptions import BackendUnavailableError
from genesis.observability import multiprocess

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_MAX_CONNECTIONS = 32  # Prometheus needs one; further ones replace slow clients, or are closed at once
_MARGIN_SECONDS = 0.25  # a running loop can exceed `ready_timeout` by this before it counts as blocked
_PATHS = ("/metrics", "/health", "/ready")

_log = logging.getLogger("genesis.server")  # below `genesis`, which has a handler


class Pingable(Protocol):
    """The part of a `Queue` that readiness needs; its `draining` is checked too, if it has one."""

    async def ping(self) -> None: ...


class _Answer(NamedTuple):
    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


def _simple_answer(path: str) -> _Answer:
    """The answer to a path that needs neither metrics nor the backend."""
    return _Answer(200, b"healthy\n") if path == "/health" else _Answer(404, b"not found\n")


def _not_ready(reason: str) -> _Answer:
    return _Answer(503, f"not ready: {reason}\n".encode())


async def _readiness(queue: Pingable | None, seconds: float) -> _Answer:
    if getattr(queue, "draining", False):
        return _not_ready("the queue is draining")
    if queue is None:
        return _Answer(200, b"ready\n")
    ping = asyncio.ensure_future(queue.ping())
    try:
        done, _ = await asyncio.wait({ping}, timeout=seconds)
    finally:
        ping.cancel()  # no effect if it is done; needed too if the client has disconnected
    if not done:
        return _not_ready(f"the backend did not answer within {seconds:g} s")
    error = asyncio.CancelledError() if ping.cancelled() else ping.exception()
    if error is None:
        return _Answer(200, b"ready\n")
    # Show only the type of other errors: a message might contain an address or a password.
    cause = type(error).__name__
    if isinstance(error, BackendUnavailableError) and error.cause == error.CLOSED:
        cause = error.cause
    elif type(error) is RuntimeError and "event loop" in str(error):
        cause = str(error)
    return _not_ready(f"the backend does not answer ({cause})")


def _known_formats(accept: str) -> str:
    """Remove OpenMetrics 2: prometheus_client writes 1.0, but labels it with the requested version."""
    unknown = re.compile(r"application/openmetrics-text\b.*version=\s*\"?([2-9]|\d\d)")
    return ",".join(kind for kind in accept.split(",") if not unknown.search(kind))


def _metrics(registry: CollectorRegistry, accept: str) -> _Answer:
    try:
        if (path := multiprocess.served_directory()) is not None:
            registry = CollectorRegistry()  # the given one would add this process' values twice
            multiprocess.AllProcesses(registry, path)  # type: ignore[no-untyped-call]
        encode, content_type = choose_encoder(_known_formats(accept))
        return _Answer(200, encode(registry), content_type)
    except Exception as error:
        _log.exception("the metrics could not be collected")
        return _Answer(500, f"the metrics could not be collected: {type(error).__name__}\n".encode())


class ObservabilityServer:
    """A small HTTP server for `/metrics`, `/health` and `/ready`.

    `/ready` is 200 if the queue is not draining and its backend replies to a ping in time, otherwise
    503 with a short reason. Start and stop the server in the event loop that uses the queue.

        async with Queue(...) as queue, ObservabilityServer(queue, port=9464): ...

    Args:
        queue: checked by `/ready`. Without a queue, the process is ready if its event loop runs.
        registry: a prometheus_client registry; the process' default registry if None. With
            PROMETHEUS_MULTIPROC_DIR set, the metrics of all processes are served instead.
        host: the address to listen on. Metrics reveal queue names and load, so the default is the
            loopback address.
        port: 0 picks a free port, which the attribute `port` returns.
        ready_timeout: seconds within which the event loop and the backend must reply.

    Raises:
        ValueError: an empty host, or a timeout that is not positive.
        OSError: on starting; the address cannot be bound.
    """

    def __init__(
        self,
        queue: Pingable | None = None,
        registry: CollectorRegistry | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 9464,
        ready_timeout: float = 2.0,
    ) -> None:
        if not host:
            raise ValueError("host is empty: give '0.0.0.0' or '::' to listen on every address")
        _check_ready_timeout(ready_timeout)
        self._queue = queue
        self._registry = REGISTRY if registry is None else registry
        self.host = host
        self._port = port
        self._ready_timeout = ready_timeout
        self._listener: _Listener | None = None

    @property
    def port(self) -> int:
        """The port of the running server; before `start`, the requested port."""
        return self._port if self._listener is None else int(self._listener.server_address[1])

    async def start(self) -> None:
        """Start to listen. Connections are accepted when this returns.

        Raises:
            RuntimeError: the server is running.
            OSError: the address cannot be bound.
        """
        if self._listener is not None:
            raise RuntimeError("the server is running")
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self.host, self._port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        multiprocess.served_directory()  # logs what is wrong with it
        try:
            self._listener = _Listener(family, address, partial(self._answer, loop))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise OSError(
                error.errno,
                f"port {self._port} of {self.host} is in use, perhaps by another worker. Give each its "
                "own port, port=0 for a free one, or mount asgi_app() in the application",
            ) from error

    async def stop(self) -> None:
        """Stop listening. Responses in progress still complete unless the process exits."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.stop()

    async def __aenter__(self) -> ObservabilityServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _answer(self, loop: asyncio.AbstractEventLoop, path: str, accept: str) -> _Answer:
        if path == "/metrics":
            return _metrics(self._registry, accept)
        if path != "/ready":
            return _simple_answer(path)
        asking = _readiness(self._queue, self._ready_timeout)
        try:
            answer = asyncio.run_coroutine_threadsafe(asking, loop)
        except RuntimeError:
            asking.close()
            return _not_ready("the event loop is closed")
        try:
            return answer.result(self._ready_timeout + _MARGIN_SECONDS)
        except (TimeoutError, concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            answer.cancel()
            return _not_ready(f"the event loop did not answer within {self._ready_timeout:g} s")


class _Listener(socketserver.ThreadingTCPServer):
    """Accepts connections in one thread and handles each in another, see `http.server`.

    `serve_forever` polls twice a second for a stop. Here a socket pair wakes the thread instead: an
    idle process sleeps, and a stop takes effect at once.
    """

    allow_reuse_address = True
    daemon_threads = True  # the exit of the process must not wait for a scrape
    request_queue_size = 128
    timeout = 0  # for `handle_request`, which is called only when the socket is readable

    def __init__(self, family: int, address: Any, answer: Callable[[str, str], _Answer]) -> None:
        self.address_family = family
        self.answer = answer
        self._lock = threading.Lock()
        self._open: dict[Any, float] = {}  # when each connection was accepted, in this order
        super().__init__(address, _Handler)
        self.socket.setblocking(False)  # a client that has disconnected must not block the thread
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="genesis-server", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.close()
        self._thread.join()
        self._stopped.close()
        self.server_close()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            for readable in (self.socket, self._stopped):
                selector.register(readable, selectors.EVENT_READ)
            while all(key.fileobj is not self._stopped for key, _ in selector.select()):
                self.handle_request()

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            time.sleep(0.1)  # out of file descriptors: do not retry in a busy loop
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        with self._lock:
            if len(self._open) >= _MAX_CONNECTIONS:
                oldest, accepted = next(iter(self._open.items()))
                if time.monotonic() - accepted < _Handler.timeout:
                    return False
                del self._open[oldest]
                self._open[oldest] = math.inf  # last, and counted until its thread has ended
                with contextlib.suppress(OSError):  # its client might have disconnected
                    oldest.shutdown(socket.SHUT_RDWR)
            self._open[request] = time.monotonic()
        return True

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        _log.debug("a connection broke off", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Listener
    timeout = 10.0  # seconds until a silent client is disconnected, and a slow one might be
    wbufsize = -1  # head and body in one packet

    def do_GET(self) -> None:
        accept = ",".join(self.headers.get_all("Accept", []))
        answer = self.server.answer(self.path.partition("?")[0], accept)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_HEAD = do_GET  # noqa: N815

    def version_string(self) -> str:
        return "genesis"  # do not reveal the versions of Python and http.server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ARG002
        return


def asgi_app(
    queue: Pingable | None = None,
    registry: CollectorRegistry | None = None,
    *,
    ready_timeout: float = 2.0,
) -> ASGIApp:
    """An ASGI application with `/metrics`, `/health` and `/ready`, to mount.

    `app.mount("/ops", asgi_app(queue))` serves `/ops/metrics`. Mounted at `/metrics`, the application
    serves the metrics there too. The arguments are those of `ObservabilityServer`.

    Raises:
        ValueError: a timeout that is not positive.
    """
    _check_ready_timeout(ready_timeout)
    registry = REGISTRY if registry is None else registry
    multiprocess.served_directory()  # logs what is wrong with it

    async def app(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            raise ValueError(f"genesis' ASGI application does not know the scope {scope['type']!r}")
        path = _path_below_mount(scope)
        if scope["method"] not in ("GET", "HEAD"):
            result = _Answer(405, b"only GET and HEAD\n")
        elif path == "/metrics":
            accept = [value.decode("latin-1") for name, value in scope["headers"] if name == b"accept"]
            result = await asyncio.to_thread(_metrics, registry, ",".join(accept))
        elif path == "/ready":
            result = await _readiness(queue, ready_timeout)
        else:
            result = _simple_answer(path)
        kind, length = result.content_type.encode(), b"%d" % len(result.body)
        headers = [(b"content-type", kind), (b"content-length", length)]
        await send({"type": "http.response.start", "status": result.status, "headers": headers})
        body = b"" if scope["method"] == "HEAD" else result.body
        await send({"type": "http.response.body", "body": body})

    return app


def _path_below_mount(scope: Scope) -> str:
    """The path below the mount. ASGI's `path` includes `root_path`; older frameworks remove it."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    below = path[len(root) :] if root and f"{path}/".startswith(f"{root}/") else path
    own = f"/{root.rpartition('/')[2]}"
    return own if below in ("", "/") and own in _PATHS else below


def _check_ready_timeout(seconds: float) -> None:
    if not seconds > 0:
        raise ValueError(f"ready_timeout must be more than 0 seconds, got {seconds!r}")
