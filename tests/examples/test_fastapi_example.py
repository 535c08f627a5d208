"""The FastAPI example, driven in this process, and once with a real uvicorn."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from examples import callers, fastapi_app
from examples.fastapi_app import LIMIT, QUEUE_ID, create_app
from tests.support.asgi import Reply, request
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


class Client:
    """Plays an ASGI server to the application."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    async def get(self, path: str, query: str = "", method: str = "GET", **options: Any) -> Reply:
        """One request; the client goes away when `gone` is set."""
        return await request(self.app, path, method, query=query, **options)

    async def line(self) -> tuple[int, int]:
        shown = (await self.get(f"/queue/{QUEUE_ID}")).json
        return shown["waiting"], shown["in_use"]

    async def stands(self, waiting: int, in_use: int) -> None:
        async def is_so() -> bool:
            return await self.line() == (waiting, in_use)

        await wait_until(is_so, f"{waiting} wait and {in_use} hold")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("OTEL_", "GENESIS_REDIS_URL"))]:
        monkeypatch.delenv(name)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    app = create_app(CollectorRegistry())
    async with app.router.lifespan_context(app):
        yield Client(app)


async def test_a_call_takes_a_slot_and_is_counted(client: Client) -> None:
    """A call is answered with its slot, and the metrics beside it have its wait."""
    reply = await client.get("/call/call-1", "seconds=0")
    assert reply.status == 200
    assert (reply.json["item_id"], reply.json["waited"], reply.json["lost"]) == ("call-1", 0.0, False)
    metrics = (await client.get("/metrics")).body.decode()
    line = f'genesis_queue_wait_seconds_count{{outcome="granted",queue="{QUEUE_ID}"}} 1.0'
    assert line in metrics
    assert (await client.get("/health")).status == 200
    assert (await client.get("/ready")).status == 200


async def test_a_call_may_name_its_queue(client: Client) -> None:
    """Queues are apart from each other: one that is full does not keep another's calls waiting."""
    gone = asyncio.Event()
    calls = [
        asyncio.ensure_future(client.get(f"/call/c{number}", "seconds=3600", gone=gone))
        for number in range(LIMIT + 1)
    ]
    await client.stands(1, LIMIT)
    assert (await client.get("/call/other", "seconds=0&queue=support")).json["waited"] == 0.0
    gone.set()
    await asyncio.gather(*calls)


async def test_the_line_is_shown(client: Client) -> None:
    """Holders and waiters are listed in order, and a client that goes away makes room at once."""
    gone = [asyncio.Event() for _ in range(LIMIT + 2)]
    calls = []
    for number, event in enumerate(gone):
        calls.append(asyncio.ensure_future(client.get(f"/call/c{number}", "seconds=3600", gone=event)))
        await client.stands(max(0, number + 1 - LIMIT), min(number + 1, LIMIT))
    entries = (await client.get(f"/queue/{QUEUE_ID}")).json["entries"]
    assert [entry["item_id"] for entry in entries] == [f"c{number}" for number in range(len(gone))]
    assert [entry["position"] for entry in entries] == [None] * LIMIT + [1, 2]
    gone[LIMIT].set()  # the first that waits
    await client.stands(1, LIMIT)
    gone[0].set()  # a holder: the last waiter moves up
    await client.stands(0, LIMIT)
    for event in gone:
        event.set()
    assert {reply.status for reply in await asyncio.gather(*calls)} == {499}
    await client.stands(0, 0)


@pytest.mark.parametrize(
    ("path", "query", "method", "status"),
    [
        ("/call/x", "seconds=nan", "GET", 422),
        ("/call/x", "seconds=-1", "GET", 422),
        ("/call/x", "seconds=many", "GET", 422),
        ("/call/x", "seconds=1e9", "GET", 422),
        ("/call/" + "x" * 201, "", "GET", 422),
        ("/call/x", "queue=", "GET", 422),
        ("/call/x", "max_waiting=-1", "GET", 422),
        ("/call/x", f"max_waiting={2**63}", "GET", 422),
        ("/call/", "", "GET", 404),
        ("/queue/", "", "GET", 404),
        ("/call/x", "", "POST", 405),
        ("/elsewhere", "", "GET", 404),
    ],
)
async def test_a_bad_request_is_refused(
    path: str, query: str, method: str, status: int, client: Client
) -> None:
    """What makes no sense is a 4xx before anything is enqueued."""
    assert (await client.get(path, query, method)).status == status
    assert await client.line() == (0, 0)


async def test_a_call_that_is_not_served_is_503_and_says_when_to_come_back(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full line, and a patience that ended."""
    monkeypatch.setattr(fastapi_app, "WAIT_SECONDS", 0.05)
    gone = asyncio.Event()
    calls = [
        asyncio.ensure_future(client.get(f"/call/c{number}", "seconds=3600", gone=gone))
        for number in range(LIMIT)
    ]
    await client.stands(0, LIMIT)
    late = await client.get("/call/late")
    assert (late.status, late.json) == (503, {"error": "QueueTimeoutError"})
    monkeypatch.setattr(fastapi_app, "MAX_WAITING", 0)
    full = await client.get("/call/full")
    assert (full.status, full.json) == (503, {"error": "QueueFullError"})
    gone.set()
    await asyncio.gather(*calls)


async def test_a_full_line_of_short_calls_is_not_tried_again_at_once(client: Client) -> None:
    """The expected wait is less than a second then, and a Retry-After of 0 would be a busy loop."""
    for _ in range(10):
        await client.get("/call/short")
    gone = asyncio.Event()
    calls = [
        asyncio.ensure_future(client.get(f"/call/c{number}", "seconds=3600", gone=gone))
        for number in range(LIMIT)
    ]
    await client.stands(0, LIMIT)
    full = await client.get("/call/full", "max_waiting=0")
    assert (full.status, full.headers["retry-after"]) == (503, "1")
    gone.set()
    await asyncio.gather(*calls)


async def test_a_client_that_goes_away_within_its_body_is_no_error(client: Client) -> None:
    """Its call is never enqueued."""
    assert (await client.get("/call/gone", cut=True)).status == 499
    assert b"wait_seconds_count" not in (await client.get("/metrics")).body


async def test_a_call_that_the_server_cancels_is_503(client: Client) -> None:
    """At the end of its grace period, a server cancels the calls that wait or hold."""
    calls = []
    for number in range(LIMIT + 1):
        calls.append(asyncio.ensure_future(client.get(f"/call/c{number}", "seconds=3600")))
        await client.stands(max(0, number + 1 - LIMIT), min(number + 1, LIMIT))
    for call in reversed(calls):  # the one that waits first: it is not to be granted
        call.cancel()
    for reply in await asyncio.gather(*calls):
        assert (reply.status, reply.json) == (503, {"error": "CancelledError"})
    await client.stands(0, 0)


async def test_the_end_of_the_lifespan_drains_the_queue() -> None:
    """Calls that still hold come to their end; new ones are refused, and readiness says why."""
    app = create_app(CollectorRegistry())
    client = Client(app)
    gone = asyncio.Event()
    async with app.router.lifespan_context(app):
        holding = asyncio.ensure_future(client.get("/call/held", "seconds=3600", gone=gone))
        await client.stands(0, 1)

        async def meanwhile() -> tuple[Reply, Reply]:
            await wait_until(lambda: draining(client), "it drains")
            replies = await client.get("/call/late"), await client.get("/ready")
            gone.set()
            return replies

        asking = asyncio.ensure_future(meanwhile())
    late, ready = await asking
    assert (late.status, late.json) == (503, {"error": "QueueDrainingError"})
    assert (ready.status, ready.body) == (503, b"not ready: the queue is draining\n")
    assert (await holding).status == 499


async def draining(client: Client) -> bool:
    return b"draining" in (await client.get("/ready")).body


async def test_redis_gone_is_not_ready_and_503(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over Redis the line is shared; while Redis is gone, calls are refused and readiness says so."""
    monkeypatch.setenv("GENESIS_REDIS_URL", own_redis.url)
    async with AsyncExitStack() as stack:
        apps = [create_app(CollectorRegistry()) for _ in range(2)]
        for app in apps:
            await stack.enter_async_context(app.router.lifespan_context(app))
        one, other = (Client(app) for app in apps)
        gone = asyncio.Event()
        holding = asyncio.ensure_future(one.get("/call/shared", "seconds=3600", gone=gone))
        await other.stands(0, 1)
        gone.set()
        await holding
        await other.stands(0, 0)
        own_redis.kill()
        ready, refused = await asyncio.gather(one.get("/ready"), other.get(f"/queue/{QUEUE_ID}"))
        assert ready.status == 503
        assert (refused.status, refused.json) == (503, {"error": "BackendUnavailableError"})


async def test_it_runs_under_uvicorn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real ASGI server serves a call, the callers that come by themselves, and its metrics."""
    factory = ["--factory", "examples.fastapi_app:create_app"]
    command = [sys.executable, "-m", "uvicorn", *factory, "--port", "0"]
    root = Path(__file__).parents[2]
    with (tmp_path / "log").open("wb") as log:
        server = await asyncio.create_subprocess_exec(*command, cwd=root, stderr=log, stdout=log)
    try:

        def log_text() -> str:
            return (tmp_path / "log").read_text()

        await wait_until(lambda: "running on http" in log_text(), "uvicorn runs")
        url = log_text().split("running on ")[1].split(" ")[0]

        def get(path: str) -> bytes:
            with urllib.request.urlopen(url + path, timeout=10) as answer:
                return bytes(answer.read())

        reply = json.loads(await asyncio.to_thread(get, "/call/a%20b?seconds=0.01"))
        assert reply["item_id"] == "a b"
        assert b"genesis_queue_hold_seconds_count" in await asyncio.to_thread(get, "/metrics")

        async def three_were_answered() -> bool:
            metrics = (await asyncio.to_thread(get, "/metrics")).decode()
            counts = re.findall(r'wait_seconds_count\{outcome="granted",queue="sales"\} (\d+)', metrics)
            return counts != [] and int(counts[0]) >= 3

        monkeypatch.setattr(callers, "TALK_SECONDS", 0.01)
        calling = asyncio.ensure_future(callers.keep_calling([url], callers.Callers("sales", 0.05)))
        await wait_until(three_were_answered, "three callers of examples/callers.py were answered")
        calling.cancel()
    finally:
        server.terminate()
        await asyncio.wait_for(server.wait(), 20)
    assert "Application shutdown complete" in log_text()
