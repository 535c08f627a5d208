"""A master that Sentinel names: found anew at each connect, and left as soon as it is replaced.

A master that dies closes its connections, and the next connect asks Sentinel. A master that is replaced
while it lives does not: it accepts writes, which will be thrown away, until Sentinel makes a replica
of it, about ten seconds later. So one connection listens to a Sentinel for the word of the switch.

What was written to the old master and had not reached the new one is lost. That is the stale replica of
heartbeat.py: everybody registers again what it has.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Callable

from redis import exceptions as redis_errors
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool

from genesis.backends.redis.endpoint import Endpoint, endpoint_of_pool, settings
from genesis.backends.redis.link import Link, end
from genesis.backends.redis.subscriber import Subscriber

__all__ = ["Master", "MasterLink"]


class Master(Endpoint):
    """The place where the master of one service is.

    Args:
        pool: of a client that `Sentinel.master_for` made; its Sentinels are asked, each in a share of
            the timeout, so that one which does not answer keeps nobody from asking the next.
        timeout: seconds within which the master must be found and connected.
    """

    def __init__(self, pool: SentinelConnectionPool, timeout: float) -> None:
        if not pool.is_master:
            raise ValueError("client leads to a replica; give what Sentinel.master_for() returns")
        given: Sentinel = pool.sentinel_manager
        pools = [client.connection_pool for client in given.sentinels]
        share = timeout / (len(pools) + 2)
        self.service: str = pool.service_name
        self.sentinels = [endpoint_of_pool(asked, share) for asked in pools]
        self._clients = [_impatient(asked, share) for asked in pools]
        manager = copy.copy(given)
        manager.sentinels = list(self._clients)
        self._manager = manager
        # A pool of our own, which is never filled: its connections ask it where the master is.
        self._pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
            self.service,
            manager,
            connection_class=pool.connection_class,
            **settings(pool.connection_class, pool.connection_kwargs, timeout),
        )
        secrets = [asked.connection_kwargs.get("password") for asked in pools]
        super().__init__(pool.connection_class, self._pool.connection_kwargs, secrets)

    def prefer(self, number: int) -> None:
        """Ask this Sentinel first: it has said what the others may not know yet."""
        first = self._clients[number]
        others = (client for client in self._clients if client is not first)
        self._manager.sentinels = [first, *others]

    async def find(self) -> tuple[str, int]:
        """Ask where the master is."""
        address: tuple[str, int] = await self._pool.get_master_address()  # type: ignore[no-untyped-call]
        return address

    def left(self, connection: AbstractConnection) -> bool:
        return self._pool.master_address not in (None, _address(connection))

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose(close_connection_pool=True)


class MasterLink(Link):
    """A link to the master, which it leaves when Sentinel says that there is another."""

    def __init__(
        self,
        master: Master,
        timeout: float,
        interval: float,
        on_up: Callable[[], None],
        on_down: Callable[[str, str], None],
    ) -> None:
        super().__init__(master, timeout, on_up, on_down)
        self._master = master
        self._look: asyncio.Task[None] | None = None
        self._asked_for = False  # another look is wanted
        self._rotation = itertools.cycle(range(len(master.sentinels)))
        self._heard = 0  # the Sentinel that is listened to
        self._ear = Subscriber(
            self._next_sentinel,
            b"+switch-master",
            timeout,
            interval,
            self._on_word,
            self._compare,
            _let_be,
        )

    async def close(self) -> None:
        await self._ear.close()
        if self._look is not None:
            await end(self._look)
        await super().close()
        await self._master.close()

    def _next_sentinel(self) -> Endpoint:
        self._heard = next(self._rotation)
        return self._master.sentinels[self._heard]

    def _on_word(self, message: bytes) -> None:
        """`<service> <old host> <old port> <new host> <new port>`"""
        if message.split(b" ")[0].decode() == self._master.service:
            self._master.prefer(self._heard)
            self._compare()

    def _compare(self) -> None:
        self._asked_for = True
        if self._look is None or self._look.done():
            self._look = self._loop.create_task(self._follow(), name="genesis-redis-sentinel")

    async def _follow(self) -> None:
        while self._asked_for:
            self._asked_for = False
            try:
                host, port = await asyncio.wait_for(self._master.find(), self._timeout)
            except (redis_errors.RedisError, OSError, asyncio.TimeoutError):
                continue  # the next word, or the end of the connection, asks again
            if self.connection is not None and self._master.left(self.connection):
                self.leave(redis_errors.ReadOnlyError(f"Sentinel names another master, {host}:{port}"))


def _let_be(reason: str, detail: str) -> None:
    """Without a Sentinel, the master that stands is as good as before."""


def _impatient(pool: ConnectionPool, timeout: float) -> Redis:
    """A client of our own for the Sentinel that `pool` leads to."""
    kwargs = settings(pool.connection_class, pool.connection_kwargs, timeout)
    kwargs["socket_timeout"] = timeout
    return Redis(connection_pool=ConnectionPool(connection_class=pool.connection_class, **kwargs))


def _address(connection: AbstractConnection) -> tuple[str, int]:
    return getattr(connection, "host", ""), getattr(connection, "port", 0)
