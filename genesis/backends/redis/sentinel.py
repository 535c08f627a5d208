"""A master that Sentinel names: found anew at each connect, and left as soon as it is replaced.

A master that dies closes its connections, and the next connect asks Sentinel. A master that is replaced
while it lives does not: it accepts writes, which will be thrown away, until Sentinel makes a replica
of it, about ten seconds later. So one more link, to any Sentinel, waits for the news.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool

from genesis.backends.redis.cluster import RouterSettings, SingleRouter
from genesis.backends.redis.endpoint import Endpoint, endpoint_of_pool, settings
from genesis.backends.redis.link import Link

__all__ = ["Master", "SentinelRouter"]

_NEWS = b"+switch-master"


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
        self.sentinels = AnySentinel([endpoint_of_pool(asked, share) for asked in pools])
        self._clients = [_impatient(asked, share) for asked in pools]
        self._manager = copy.copy(given)
        self._manager.sentinels = list(self._clients)
        # A pool of our own, which is never filled: its connections ask it where the master is.
        self._pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
            self.service,
            self._manager,
            connection_class=pool.connection_class,
            **settings(pool.connection_class, pool.connection_kwargs, timeout),
        )
        self._latest: AbstractConnection | None = None
        secrets = [asked.connection_kwargs.get("password") for asked in pools]
        super().__init__(pool.connection_class, self._pool.connection_kwargs, secrets)

    def connection(self) -> AbstractConnection:
        self._latest = super().connection()
        return self._latest

    @property
    def address(self) -> tuple[str, int]:
        """Where the connection that was made last leads to."""
        return getattr(self._latest, "host", ""), int(getattr(self._latest, "port", 0))

    def prefer(self, number: int) -> None:
        """Ask this Sentinel first: it knows what the others may not know yet."""
        first = self._clients[number]
        others = (client for client in self._clients if client is not first)
        self._manager.sentinels = [first, *others]

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose(close_connection_pool=True)


class AnySentinel(Endpoint):
    """One Sentinel after the other."""

    def __init__(self, sentinels: list[Endpoint]) -> None:
        self._rotation = itertools.cycle(enumerate(sentinels))
        self.number, self._current = 0, sentinels[0]

    def connection(self) -> AbstractConnection:
        self.number, self._current = next(self._rotation)
        return self._current.connection()

    def tell(self, error: BaseException) -> str:
        return self._current.tell(error)


class SentinelRouter(SingleRouter):
    """A link to the master, which is left when a Sentinel names another one."""

    def __init__(self, master: Master, settings: RouterSettings) -> None:
        self._master = master
        self._address = ("", 0)
        self._backend_up = settings.on_up
        super().__init__(master, settings._replace(on_up=self._master_up))
        self._news = settings._replace(
            channel=_NEWS,
            scripts=(),
            on_up=self._ask,
            on_down=_let_be,
            on_push=self._told,
        ).link(master.sentinels)

    def links(self) -> Iterable[Link]:
        return (self._link,)

    def abort(self) -> None:
        self._news.close()
        super().abort()

    async def close(self, timeout: float) -> None:
        self._news.close()
        await super().close(timeout)
        await self._news.wait_closed(timeout)
        await self._master.close()

    def _master_up(self, link: Link) -> None:
        self._address = self._master.address
        self._backend_up(link)
        if self._news.up:
            self._ask(self._news)  # it may have been replaced while it was connected to

    def _ask(self, news: Link) -> None:
        """What was published while nobody listened is lost."""
        query = b"get-master-addr-by-name"
        news.send((b"SENTINEL", query, self._master.service.encode()), self._named)

    def _named(self, reply: Any) -> None:
        if isinstance(reply, list) and len(reply) == 2:
            self._compare(reply[0].decode(), int(reply[1]))

    def _told(self, news: Link, push: list[Any]) -> None:  # noqa: ARG002
        """`<service> <old host> <old port> <new host> <new port>`"""
        if push[0] == b"message":
            service, _, _, host, port = push[2].decode().split(" ")
            if service == self._master.service:
                self._compare(host, int(port))

    def _compare(self, host: str, port: int) -> None:
        if self._link.up and (host, port) != self._address:
            self._master.prefer(self._master.sentinels.number)
            self._link.leave("read_only", f"Sentinel names another master, {host}:{port}")


def _let_be(link: Link | None, reason: str, detail: str, alarm: bool) -> None:
    """Without a Sentinel, the master that is connected is as good as before."""


def _impatient(pool: ConnectionPool, timeout: float) -> Redis:
    """A client of our own for the Sentinel that `pool` leads to."""
    kwargs = settings(pool.connection_class, pool.connection_kwargs, timeout)
    kwargs.update(socket_timeout=timeout, protocol=2)  # as redis-py's Sentinel parses best
    return Redis(connection_pool=ConnectionPool(connection_class=pool.connection_class, **kwargs))
