"""A worker process as an application would run it: traces exported, metrics served, logs as JSON."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from genesis import Queue
from genesis.observability import ObservabilityServer, configure
from genesis.queue import RedisBackend
from tests.support.worker import Process, Worker

SERVICE = "call-router"


class ObservedWorker(Worker):
    """Drives such a process. `port` serves /metrics after entering."""

    module = "tests.observability.observed_worker"

    def __init__(self, url: str, lease: float, queue_id: str, otlp: str, log: Path) -> None:
        super().__init__(url, lease, queue_id, otlp, str(log))
        self.log = log

    @property
    def port(self) -> int:
        ready = self.find("ready")
        assert ready is not None
        return int(ready["port"])


async def run(backend: RedisBackend, queue_id: str) -> None:
    queue = Queue(backend)
    async with ObservabilityServer(queue, port=0) as server:
        await Process(queue, queue_id).run(port=server.port)


def main(url: str, lease: str, queue_id: str, otlp: str, log: str) -> None:
    backend = RedisBackend(url, lease=float(lease))
    instance_id = backend.instance_id
    with (
        Path(log).open("w") as stream,
        configure(SERVICE, instance_id=instance_id, otlp_endpoint=otlp, log_stream=stream),
    ):
        asyncio.run(run(backend, queue_id))


if __name__ == "__main__":
    main(*sys.argv[1:])
