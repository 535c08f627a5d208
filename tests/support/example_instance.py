"""An instance of `examples/fastapi_app.py`, with a short lease and a log sink that breaks on demand.

    python -m tests.support.example_instance <port> <redis url> <lease> <limit> <longest wait>

SIGUSR1 breaks the log sink: a handler of the application raises. SIGUSR2 repairs it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from examples import fastapi_app
from genesis.queue import RedisBackend
from tests.support.redis_server import free_port
from tests.support.sick import SickHandler

__all__ = ["ExampleInstance"]

MODULE = "tests.support.example_instance"


class ExampleInstance:
    """Controls the instance from a test: starts, calls and kills it, restarts it on the same port."""

    def __init__(self, redis_url: str, lease: float, limit: int, patience: float) -> None:
        self.port = free_port()
        self._arguments = [redis_url, str(lease), str(limit), str(patience)]
        self._log = Path(tempfile.mkstemp(prefix="genesis-example-")[1])
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """The value of Prometheus' label `instance`."""
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """Its log file: JSON lines of the library, and lines of the server."""
        return self._log

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(self.port), *self._arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    async def ready(self) -> bool:
        try:
            return "200 OK" in await self.get("/ready")
        except OSError:
            return False

    async def get(self, path: str) -> str:
        """Request a path and wait for the response; a cancellation disconnects."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode())
            return (await reader.read()).decode()
        finally:
            writer.close()

    def signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        """SIGTERM, as a deployment does, and wait until it is gone."""
        self.signal(signal.SIGTERM)
        assert self._process is not None
        self._process.wait()
        self._process = None

    def close(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGCONT)
            self.kill()
        self._log.unlink()


def main(port: str, redis_url: str, lease: str, limit: str, patience: str) -> None:
    broken = SickHandler()
    logger = logging.getLogger("genesis")
    signal.signal(signal.SIGUSR1, lambda *_: logger.addHandler(broken))
    signal.signal(signal.SIGUSR2, lambda *_: logger.removeHandler(broken))
    os.environ["GENESIS_REDIS_URL"] = redis_url
    settings: Any = fastapi_app
    settings.RedisBackend = partial(RedisBackend, lease=float(lease))
    settings.LIMIT = int(limit)
    settings.WAIT_SECONDS = float(patience)
    app = fastapi_app.create_app()
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", loop="uvloop")


if __name__ == "__main__":
    main(*sys.argv[1:])
