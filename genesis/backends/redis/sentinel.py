"""A master behind Sentinels: looked up at each connect, and abandoned as soon as it is replaced.

When a master dies, its connections close, and the next connect asks Sentinel. A master that is replaced
while it is alive keeps its connections. It accepts writes, which will be discarded, until Sentinel
makes it a replica about ten seconds later. A second link, to any Sentinel, therefore subscribes to
`+switch-master`.
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

_SWITCH_MASTER = b"+switch-master"


class Master(Endpoint):
    """The current master of one service.

    Args:
        pool: the pool of a client made by `Sentinel.master_for`. Its Sentinels are asked in turn. Each
            gets a share of the timeout, so that a silent Sentinel leaves time to ask the next.
        timeout: seconds within which the master must be found and connected.

    Raises:
        ValueError: the client leads to a replica.
    """

    def __init__(self, pool: SentinelConnectionPool, timeout: float) -> None:
        if not pool.is_master:
            raise ValueError("client leads to a replica; give what Sentinel.master_for() returns")
        given: Sentinel = pool.sentinel_manager
        pools = [client.connection_pool for client in given.sentinels]
        share = timeout / (len(pools) + 2)
        self.service: str = pool.service_name
        self.sentinels = AnySentinel([endpoint_of_pool(asked, share) for asked in pools])
        self._clients = [_client_of(asked, share) for asked in pools]
        self._manager = copy.copy(given)
        self._manager.sentinels = list(self._clients)
        # A pool that stays empty: its connections ask it for the master's address.
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
        """The address of the connection that was created last."""
        return getattr(self._latest, "host", ""), int(getattr(self._latest, "port", 0))

    def prefer(self, number: int) -> None:
        """Ask this Sentinel first: the others might not know of the new master yet."""
        first = self._clients[number]
        others = (client for client in self._clients if client is not first)
        self._manager.sentinels = [first, *others]

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose(close_connection_pool=True)


class AnySentinel(Endpoint):
    """Connects to a different Sentinel each time, in rotation."""

    def __init__(self, sentinels: list[Endpoint]) -> None:
        self._rotation = itertools.cycle(enumerate(sentinels))
        self.number, self._current = 0, sentinels[0]

    def connection(self) -> AbstractConnection:
        self.number, self._current = next(self._rotation)
        return self._current.connection()

    def redact(self, error: BaseException) -> str:
        return self._current.redact(error)


class SentinelRouter(SingleRouter):
    """A link to the master. It reconnects when a Sentinel names another master."""

    def __init__(self, master: Master, settings: RouterSettings) -> None:
        self._master = master
        self._address = ("", 0)
        self._backend_up = settings.on_up
        super().__init__(master, settings._replace(on_up=self._master_up))
        self._sentinel_link = settings._replace(
            channel=_SWITCH_MASTER,
            scripts=(),
            on_up=self._query,
            on_down=_ignore_down,
            on_push=self._on_message,
        ).link(master.sentinels)

    def links(self) -> Iterable[Link]:
        return (self._link,)

    def abort(self) -> None:
        self._sentinel_link.close()
        super().abort()

    async def close(self, timeout: float) -> None:
        self._sentinel_link.close()
        await super().close(timeout)
        await self._sentinel_link.wait_closed(timeout)
        await self._master.close()

    def _master_up(self, link: Link) -> None:
        self._address = self._master.address
        self._backend_up(link)
        if self._sentinel_link.up:
            self._query(self._sentinel_link)  # the master might have been replaced meanwhile

    def _query(self, link: Link) -> None:
        """Ask for the address: messages published before the subscription are lost."""
        query = b"get-master-addr-by-name"
        link.send((b"SENTINEL", query, self._master.service.encode()), self._on_address)

    def _on_address(self, reply: Any) -> None:
        if isinstance(reply, list) and len(reply) == 2:
            self._compare(reply[0].decode(), int(reply[1]))

    def _on_message(self, link: Link, push: list[Any]) -> None:  # noqa: ARG002
        """`<service> <old host> <old port> <new host> <new port>`"""
        if push[0] == b"message":
            service, _, _, host, port = push[2].decode().split(" ")
            if service == self._master.service:
                self._compare(host, int(port))

    def _compare(self, host: str, port: int) -> None:
        if self._link.up and (host, port) != self._address:
            self._master.prefer(self._master.sentinels.number)
            self._link.reconnect("read_only", f"Sentinel names another master, {host}:{port}")


def _ignore_down(link: Link | None, reason: str, detail: str, alarm: bool) -> None:
    """The loss of a Sentinel does not affect the connection to the master."""


def _client_of(pool: ConnectionPool, timeout: float) -> Redis:
    """A new client for the Sentinel of `pool`, with `timeout` seconds per operation."""
    kwargs = settings(pool.connection_class, pool.connection_kwargs, timeout)
    kwargs.update(socket_timeout=timeout, protocol=2)  # redis-py parses Sentinel's RESP2 replies best
    return Redis(connection_pool=ConnectionPool(connection_class=pool.connection_class, **kwargs))
