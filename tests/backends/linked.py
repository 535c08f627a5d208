"""A link to Redis for a test, and a record of its callbacks."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import ConnectionPool

from genesis.backends.redis.endpoint import Endpoint, pool_of_url
from genesis.backends.redis.link import Link, LinkSettings
from tests.support.redis_server import RedisServer
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import wait_until

TIMEOUT = 2.0  # seconds
PROBE = 0.3  # seconds
CHANNEL = b"genesis:test:wake"


_SOURCE = b"return redis.call('INCR', KEYS[1])"
_SHA = hashlib.sha1(_SOURCE).hexdigest().encode()
GREETING = [(b"SUBSCRIBE", CHANNEL), (b"SCRIPT", b"LOAD", _SOURCE)]


def increment(*keys: bytes) -> tuple[bytes, ...]:
    """The command that increments the first key."""
    return (b"EVALSHA", _SHA, b"%d" % len(keys), *keys)


class Watched:
    """A link, and a record of its callbacks."""

    def __init__(self, *where: str | ConnectionPool, **options: Any) -> None:
        self.ups = 0
        self.downs: list[tuple[str, str]] = []
        self.events: list[Any] = []  # pushes and replies, in order
        self.fail_on_up = False
        options.setdefault("timeout", TIMEOUT)
        options.setdefault("probe_interval", PROBE)
        pools = [pool_of_url(each) if isinstance(each, str) else each for each in where]
        settings = LinkSettings(
            GREETING,
            on_up=self._up,
            on_down=lambda link, *what: self.on_down(*what),
            on_push=lambda link, push: self.events.append(push),
            **options,
        )
        self.link = Link([Endpoint(pool) for pool in pools], settings)

    @property
    def alarms(self) -> list[str]:
        return [reason for reason, _ in self.downs if reason != "idle_closed"]

    async def is_up(self, times: int = 1) -> None:
        await wait_until(lambda: self.ups >= times and self.link.up, f"it was up {times} times")

    def ask(self, *parts: bytes) -> asyncio.Future[Any]:
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def on_reply(answer: Any) -> None:
            self.events.append(answer)
            reply.set_result(answer)  # raises if it is called twice

        assert self.link.send(parts, on_reply), self.link.why_down
        return reply

    def increment(self, key: bytes = b"counter") -> asyncio.Future[Any]:
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        assert self.link.send(increment(key), reply.set_result), self.link.why_down
        return reply

    def on_down(self, reason: str, detail: str) -> None:
        self.downs.append((reason, detail))

    def _up(self, link: Link) -> None:
        self.ups += 1
        if self.fail_on_up:
            self.fail_on_up = False
            raise RuntimeError("planted")


@asynccontextmanager
async def linked(*where: str | ConnectionPool, **options: Any) -> AsyncIterator[Watched]:
    watched = Watched(*where, **options)
    try:
        yield watched
    finally:
        watched.link.close()
        await watched.link.wait_closed()
        assert asyncio.all_tasks() <= {asyncio.current_task()}, "the link left a task behind"


@asynccontextmanager
async def proxied(server: RedisServer, **options: Any) -> AsyncIterator[tuple[TcpProxy, Watched]]:
    async with TcpProxy(server.port) as proxy:
        watched = Watched(proxy.url, **options)
        try:
            yield proxy, watched
        finally:
            watched.link.close()
            proxy.release()
            await watched.link.wait_closed()
