"""`/metrics`, `/health` and `/ready`, as a server of its own or as an ASGI application to mount.

The server is the standard library's `http.server` in threads of its own, and not a coroutine of the
application's event loop. What it tells is wanted most when that loop is blocked: from a thread the
metrics still go out, and `/ready` notices, because it asks the loop to ping the backend and gives it
`ready_timeout` seconds. Rendering ten thousand series takes a good part of a second, too, which in a
thread delays the calls by a switch of threads, and not by all of it. Parsing HTTP is left to
`http.server`, which bounds the request line and the headers; prometheus_client's own
`start_http_server` is not used because it answers every path with the metrics, closes every
connection after one answer, looks its own name up in DNS, and has no `/ready`.

Whoever runs an ASGI server already needs no port and no thread for this: `asgi_app` answers the same
three paths in it. It renders the metrics in a thread for the same reason.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import gzip
import logging
import os
import re
import selectors
import socket
import socketserver
import ssl
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted

from genesis.exceptions import BackendUnavailableError
from genesis.observability import multiprocess

__all__ = ["ASGIApp", "ObservabilityServer", "Pingable", "asgi_app"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_MOST_CONNECTIONS = 32  # Prometheus needs one; what comes on top of these is hung up on
_IDLE_SECONDS = 75.0  # longer than the usual interval between two scrapes
_GRACE_SECONDS = 2.0  # for answers on their way when the server stops
_TEXT = "text/plain; charset=utf-8"
_ALLOWED = ("GET", "HEAD")
_PATHS = ("/metrics", "/health", "/ready")

_log = logging.getLogger("genesis.server")
_log.addHandler(logging.NullHandler())


class Pingable(Protocol):
    """What readiness needs of a `Queue`."""

    async def ping(self) -> None: ...


class _Answer(NamedTuple):
    status: HTTPStatus
    body: bytes
    content_type: str = _TEXT
    headers: tuple[tuple[str, str], ...] = ()


_NOT_FOUND = _Answer(HTTPStatus.NOT_FOUND, b"not found\n")
_NOT_ALLOWED = _Answer(
    HTTPStatus.METHOD_NOT_ALLOWED,
    b"only GET and HEAD\n",
    headers=(("Allow", ", ".join(_ALLOWED)), ("Connection", "close")),
)
_HEALTHY = _Answer(HTTPStatus.OK, b"healthy\n")
_READY = _Answer(HTTPStatus.OK, b"ready\n")


def _not_ready(reason: str) -> _Answer:
    return _Answer(HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: {reason}\n".encode())


def _refused(error: BaseException) -> _Answer:
    # Of a foreign error the kind alone: its message may name an address, or a password in it.
    cause = ""
    if isinstance(error, BackendUnavailableError) and error.cause == error.CLOSED:
        cause = error.cause
    elif type(error) is RuntimeError and "event loop" in str(error):
        cause = str(error)
    return _not_ready(f"the backend does not answer ({cause or type(error).__name__})")


def _known_formats(accept: str) -> str:
    """Without OpenMetrics 2: prometheus_client writes 1.0 and labels it with the version asked for."""
    unknown = re.compile(r"application/openmetrics-text\b.*version=\s*\"?([2-9]|\d\d)")
    return ",".join(kind for kind in accept.split(",") if not unknown.search(kind))


def _metrics(registry: CollectorRegistry, accept: str, accept_encoding: str) -> _Answer:
    try:
        if (path := multiprocess.directory()) is not None:
            # The values of all processes, from their files; a registry would add this one's twice.
            registry = CollectorRegistry()
            multiprocess.AllProcesses(registry, path)  # type: ignore[no-untyped-call]
        encode, content_type = choose_encoder(_known_formats(accept))
        body = encode(registry)
        headers: tuple[tuple[str, str], ...] = (("Vary", "Accept, Accept-Encoding"),)
        if gzip_accepted(accept_encoding):
            body = gzip.compress(body, compresslevel=1)
            headers += (("Content-Encoding", "gzip"),)
    except Exception as error:
        _log.exception("the metrics could not be collected")
        text = f"the metrics could not be collected: {type(error).__name__}\n"
        return _Answer(HTTPStatus.INTERNAL_SERVER_ERROR, text.encode())
    return _Answer(HTTPStatus.OK, body, content_type, headers)


class ObservabilityServer:
    """A small HTTP/1.1 server for `/metrics`, `/health` and `/ready`, and nothing else.

    `/health` is 200 as long as the process answers at all; `/ready` is 200 if the queue's backend
    answers a ping in time, else 503 with a short reason. Start and stop it in the event loop that
    the queue is used in.

        async with Queue(...) as queue, ObservabilityServer(queue, port=9464): ...

    Args:
        queue: asked by `/ready`; without one the process is ready as soon as it answers.
        registry: of prometheus_client; the process' default one if None. With
            PROMETHEUS_MULTIPROC_DIR set, the metrics of all processes are served instead.
        host: where to listen. The metrics name queues and loads: another address than the loopback
            one must be given on purpose.
        port: 0 picks a free one; `port` then tells which.
        certfile, keyfile: PEM files for TLS; both or neither.
        ready_timeout: seconds for the event loop and the backend to answer.

    Raises:
        ValueError: a certificate without a key or a key without a certificate, an empty host, or a
            timeout that is not positive.
        OSError: on starting; the address cannot be bound, or a file cannot be read.
    """

    def __init__(
        self,
        queue: Pingable | None = None,
        registry: CollectorRegistry | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 9464,
        certfile: str | os.PathLike[str] | None = None,
        keyfile: str | os.PathLike[str] | None = None,
        ready_timeout: float = 2.0,
    ) -> None:
        if (certfile is None) != (keyfile is None):
            given, missing = ("certfile", "keyfile") if keyfile is None else ("keyfile", "certfile")
            raise ValueError(
                f"{given} was given without {missing}: TLS needs both. "
                f"Give {missing}, or leave {given} out to serve plain HTTP."
            )
        if not host:
            raise ValueError(
                "host is empty, which would listen on every address. Say '0.0.0.0' or '::' if that is "
                "meant, or leave it out for 127.0.0.1."
            )
        _check_ready_timeout(ready_timeout)
        self._queue = queue
        self._registry = REGISTRY if registry is None else registry
        self._address = (host, port)
        self._files = None if certfile is None or keyfile is None else (certfile, keyfile)
        self._ready_timeout = ready_timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: _Listener | None = None

    @property
    def host(self) -> str:
        return self._address[0]

    @property
    def port(self) -> int:
        """The port that is listened on, once started; until then the one that was asked for."""
        if self._listener is None:
            return self._address[1]
        return int(self._listener.server_address[1])

    async def start(self) -> None:
        """Listen, and return once connections are accepted."""
        if self._listener is not None:
            raise RuntimeError("the server is running")
        self._loop = asyncio.get_running_loop()
        host, port = self._address
        flags = socket.AI_PASSIVE
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
        tls = None
        if self._files is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(*self._files)
        family, _, _, _, address = found[0]
        multiprocess.warn_of_other_workers()
        try:
            self._listener = _Listener(family, address, self._answer, tls)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise OSError(
                error.errno,
                f"port {port} of {host} is in use, perhaps by another worker of this program. Give "
                "each its own port, port=0 for a free one, or mount asgi_app() in the application",
            ) from error

    async def stop(self) -> None:
        """Stop listening, let answers on their way go out, and close every connection."""
        listener, self._listener = self._listener, None
        if listener is not None:
            # In a thread: an answer on its way may be a `/ready` that needs this loop.
            await asyncio.to_thread(listener.stop)

    async def __aenter__(self) -> ObservabilityServer:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    def _answer(self, method: str, path: str, accept: str, accept_encoding: str) -> _Answer:
        if path not in _PATHS:
            return _NOT_FOUND
        if method not in _ALLOWED:
            return _NOT_ALLOWED
        if path == "/metrics":
            return _metrics(self._registry, accept, accept_encoding)
        return _HEALTHY if path == "/health" else self._readiness()

    def _readiness(self) -> _Answer:
        """Asked from a thread: has the event loop time for a ping, and does the backend answer it?"""
        queue, loop = self._queue, self._loop
        if queue is None:
            return _READY
        begun = threading.Event()

        async def ping() -> None:
            begun.set()
            await queue.ping()

        asking = ping()
        try:
            assert loop is not None
            answer = asyncio.run_coroutine_threadsafe(asking, loop)
        except RuntimeError:
            asking.close()
            return _not_ready("the event loop is closed")
        try:
            answer.result(self._ready_timeout)
        except concurrent.futures.TimeoutError as error:
            if answer.done():  # the backend's own, and not that of waiting here
                return _refused(error)
            answer.cancel()
            who = "the backend" if begun.is_set() else "the event loop"
            return _not_ready(f"{who} did not answer within {self._ready_timeout:g} s")
        except (Exception, concurrent.futures.CancelledError) as error:
            return _refused(error)
        return _READY


class _Listener(socketserver.ThreadingTCPServer):
    """Accepts connections in one thread and answers each in another; see `http.server`.

    `serve_forever` looks twice a second whether it is to stop; here a pair of sockets tells it, so
    that an idle process sleeps and a stopping one stops at once.
    """

    allow_reuse_address = True
    daemon_threads = True  # a process that ends without `stop` must not wait for a scrape
    request_queue_size = 128
    timeout = 0  # of `handle_request`, which is called when there is something to accept

    def __init__(
        self,
        family: int,
        address: Any,
        answer: Callable[[str, str, str, str], _Answer],
        tls: ssl.SSLContext | None,
    ) -> None:
        self.address_family = family
        self.answer = answer
        self._open: set[socket.socket] = set()
        self._changed = threading.Condition()
        super().__init__(address, _Handler)
        if tls is not None:
            # The handshake is left to the connection's own thread: a slow one delays nobody else.
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.socket.setblocking(False)  # a caller that is gone again must not hold up the thread
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="genesis-server", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.close()
        self._thread.join()
        self._stopped.close()
        self.server_close()
        # A connection that waits for its next request reads the end and closes; one that is being
        # answered does so afterwards. Not by SSLSocket.shutdown, which would go on in plain text.
        with self._changed:
            for connection in self._open:
                _shut(connection, socket.SHUT_RD)
            self._changed.wait_for(lambda: not self._open, _GRACE_SECONDS)
            for connection in self._open:
                _shut(connection, socket.SHUT_RDWR)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            # Out of file descriptors, most likely, with the connection still there to be accepted:
            # do not try as fast as the processor can, beside calls that need it.
            _readable(0.1, self._stopped)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            if len(self._open) >= _MOST_CONNECTIONS:
                self.shutdown_request(request)
                return
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._changed:
            self._open.discard(request)
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        _log.debug("a connection broke off", exc_info=True)

    def _serve(self) -> None:
        while self._stopped not in _readable(None, self, self._stopped):
            self.handle_request()


def _readable(timeout: float | None, *files: Any) -> set[Any]:
    with selectors.DefaultSelector() as selector:
        for file in files:
            selector.register(file, selectors.EVENT_READ)
        return {key.fileobj for key, _ in selector.select(timeout)}


def _shut(connection: socket.socket, how: int) -> None:
    try:
        socket.socket.shutdown(connection, how)
    except OSError:
        return  # it has ended by itself


class _Handler(BaseHTTPRequestHandler):
    """One connection; every method comes to `_answer_request`."""

    server: _Listener
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    wbufsize = -1  # head and body in one packet
    disable_nagle_algorithm = True
    error_content_type = _TEXT
    error_message_format = "%(code)d %(message)s\n"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._answer_request
        raise AttributeError(name)

    def _answer_request(self) -> None:
        headers = self.headers
        if headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers:
            self.close_connection = True  # a body that is not read would look like the next request
        try:
            path = urlsplit(self.path).path
        except ValueError:
            path = ""
        answer = self.server.answer(
            self.command,
            path,
            ",".join(headers.get_all("Accept", [])),
            ",".join(headers.get_all("Accept-Encoding", [])),
        )
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def version_string(self) -> str:
        return "genesis"  # and not the versions of Python and http.server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ARG002
        return


def asgi_app(
    queue: Pingable | None = None,
    registry: CollectorRegistry | None = None,
    *,
    ready_timeout: float = 2.0,
) -> ASGIApp:
    """An ASGI application with `/metrics`, `/health` and `/ready`, to mount or to run by itself.

    Mounted under a prefix it answers below it: `app.mount("/ops", asgi_app(queue))` has
    `/ops/metrics`. Mounted at `/metrics`, it answers there, too.

    Args: as `ObservabilityServer`.
    """
    _check_ready_timeout(ready_timeout)
    registry = REGISTRY if registry is None else registry

    async def readiness() -> _Answer:
        if queue is None:
            return _READY
        ping = asyncio.ensure_future(queue.ping())
        try:
            done, _ = await asyncio.wait({ping}, timeout=ready_timeout)
        finally:
            ping.cancel()  # unless it is done; also for a client that has hung up
        if not done:
            return _not_ready(f"the backend did not answer within {ready_timeout:g} s")
        if ping.cancelled():
            return _refused(asyncio.CancelledError())
        error = ping.exception()
        return _READY if error is None else _refused(error)

    multiprocess.warn_of_other_workers()

    async def answer(scope: Scope) -> _Answer:
        path = _path_below_mount(scope)
        if path not in _PATHS:
            return _NOT_FOUND
        if scope["method"] not in _ALLOWED:
            # HTTP/2 knows no Connection header; the ASGI server minds the connection.
            return _NOT_ALLOWED._replace(headers=_NOT_ALLOWED.headers[:1])
        if path == "/health":
            return _HEALTHY
        if path == "/ready":
            return await readiness()
        accept, encoding = (_header(scope, name) for name in (b"accept", b"accept-encoding"))
        return await asyncio.to_thread(_metrics, registry, accept, encoding)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
        elif scope["type"] == "http":
            result = await answer(scope)
            headers = [
                ("content-type", result.content_type),
                ("content-length", str(len(result.body))),
                *((name.lower(), value) for name, value in result.headers),
            ]
            await send(
                {
                    "type": "http.response.start",
                    "status": int(result.status),
                    "headers": [(name.encode(), value.encode()) for name, value in headers],
                }
            )
            body = b"" if scope["method"] == "HEAD" else result.body
            await send({"type": "http.response.body", "body": body})
        else:
            raise ValueError(f"genesis' ASGI application does not know the scope {scope['type']!r}")

    return app


async def _live(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


def _path_below_mount(scope: Scope) -> str:
    """ASGI's `path` begins with the `root_path` of the mount; older frameworks cut it off."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    below = path[len(root) :] if root and f"{path}/".startswith(f"{root}/") else path
    own = f"/{root.rpartition('/')[2]}"
    return own if below in ("", "/") and own in _PATHS else below


def _header(scope: Scope, name: bytes) -> str:
    return ",".join(value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name)


def _check_ready_timeout(seconds: float) -> None:
    if not seconds > 0:
        raise ValueError(f"ready_timeout must be more than 0 seconds, got {seconds!r}")
