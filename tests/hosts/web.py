"""A real web server with the FastAPI example in two workers, and clients of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from fastapi import FastAPI
from uvicorn_worker import UvicornWorker

from examples import fastapi_app
from genesis import RedisBackend
from tests.hosts.numbers import Numbers, numbers
from tests.support.redis_server import free_port
from tests.support.waiting import wait_until

__all__ = ["GRACE", "PATIENCE", "SERVERS", "GunicornWorker", "WebServer", "create_impatient_app"]

GRACE = 2  # seconds that a server waits for running requests before it cancels them
APP = "examples.fastapi_app:create_app"
SHORT_LEASE = 2.0  # seconds
PATIENCE = 6.0  # seconds that a call of `create_impatient_app` waits

_UVICORN = ["uvicorn", "--factory", APP, "--workers", "2", "--loop", "uvloop"]
_UVICORN += ["--timeout-graceful-shutdown", str(GRACE), "--port"]
_GUNICORN = ["gunicorn", f"{APP}()", "--workers", "2", "--graceful-timeout", "20"]
_GUNICORN += ["--worker-class", "tests.hosts.web.GunicornWorker"]

SERVERS = {
    "uvicorn": _UVICORN,
    "gunicorn": [*_GUNICORN, "--bind"],
    "gunicorn-preload": [*_GUNICORN, "--preload", "--bind"],
}


def create_impatient_app() -> FastAPI:
    """The example with a short lease and little patience, for alerts that come soon."""
    settings: Any = fastapi_app
    settings.RedisBackend = partial(RedisBackend, lease=SHORT_LEASE)
    settings.WAIT_SECONDS = PATIENCE
    return fastapi_app.create_app()


class GunicornWorker(UvicornWorker):  # type: ignore[misc]
    """Cancels what still runs after `GRACE`; without it, gunicorn kills the worker and its slots."""

    CONFIG_KWARGS = {**UvicornWorker.CONFIG_KWARGS, "timeout_graceful_shutdown": GRACE}  # noqa: RUF012


class WebServer:
    """Use as `async with`; it is entered once it serves."""

    def __init__(self, kind: str, redis_url: str, folder: Path, app: str = APP) -> None:
        self.port = free_port()
        where = str(self.port) if kind == "uvicorn" else f"127.0.0.1:{self.port}"
        words = [word.replace(APP, app) for word in SERVERS[kind]]
        self._command = [sys.executable, "-m", *words, where]
        metrics = folder / "metrics"
        metrics.mkdir()
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
            "GENESIS_REDIS_URL": redis_url,
            "PROMETHEUS_MULTIPROC_DIR": str(metrics),
        }
        self.log = folder / "log"
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> WebServer:
        with self.log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                cwd=Path(__file__).parents[2],
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        await wait_until(self._serves, "the server serves", 30.0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # a session of its own: it and its workers
            await self._process.wait()

    async def _serves(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, self.log.read_text()
        try:
            return (await self.get("/ready"))[0] == 200
        except OSError:
            return False

    def terminate(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        """The exit status, once all processes are gone."""
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), 20)

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body; 0 if the server disconnected. A cancellation disconnects."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            return int(head.split(b" ")[1]) if head else 0, body
        finally:
            writer.close()

    def call(
        self, item_id: str, seconds: float, queue_id: str = "calls"
    ) -> asyncio.Task[tuple[int, bytes]]:
        return asyncio.create_task(self.get(f"/call/{item_id}?seconds={seconds:g}&queue={queue_id}"))

    async def line(self, queue_id: str = "calls") -> Any:
        status, body = await self.get(f"/queue/{queue_id}")
        assert status == 200, body
        return json.loads(body)

    async def stands(self, waiting: int, in_use: int, queue_id: str = "calls") -> None:
        async def is_so() -> bool:
            line = await self.line(queue_id)
            return (line["waiting"], line["in_use"]) == (waiting, in_use)

        await wait_until(is_so, f"{waiting} wait and {in_use} hold")

    async def numbers(self) -> Numbers:
        """Of all workers together."""
        status, body = await self.get("/metrics")
        assert status == 200, body
        return numbers(body.decode(), "calls")
