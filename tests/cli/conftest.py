"""A line of three instances on a private Redis, and the command line run as an operator runs it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import pytest

from genesis import Queue
from genesis.cli.main import main
from tests.support.fleet import Call, Fleet
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def codes(self) -> list[str]:
        """Of the findings."""
        return [each["code"] for each in self.json["findings"]]


Run = Callable[..., "asyncio.Future[Result]"]


class Line(NamedTuple):
    """Three instances: one holds `sales`, whose limit is 1, two wait in it."""

    fleet: Fleet
    queues: list[Queue]
    calls: list[Call]
    server: RedisServer
    run: Run

    async def doctor(self, *more: str) -> Result:
        return await self.run("doctor", "--json", *more)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in a thread, so that the instances continue meanwhile."""
    monkeypatch.delenv("GENESIS_REDIS_URL", raising=False)

    async def run(*arguments: str) -> Result:
        capsys.readouterr()
        code = await asyncio.to_thread(main, arguments)
        return Result(code, *capsys.readouterr())

    return run  # type: ignore[return-value]


@pytest.fixture
async def line(
    own_redis: RedisServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Line]:
    monkeypatch.setenv("GENESIS_REDIS_URL", own_redis.url)
    async with AsyncExitStack() as stack:
        fleet = Fleet(own_redis, stack)
        queues = [fleet.queue() for _ in range(3)]
        calls = [fleet.call(queues[0], "call-1")]
        await calls[0].held()
        for number, queue in enumerate(queues[1:], 2):
            calls += await fleet.waiting(queue, f"call-{number}")
        await wait_until(
            lambda: (
                own_redis.client.zcard("genesis:queue:index:instances") == 3
                and own_redis.client.zcard("genesis:queue:index:queues") == 1
            ),
            "all are listed",
        )
        yield Line(fleet, queues, calls, own_redis, run)
        if own_redis.running:
            for call in calls:
                await call.ended()
            for queue in queues:
                await queue.close()
