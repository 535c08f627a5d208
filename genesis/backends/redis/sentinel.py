"""A master behind Sentinels: looked up at each connect, and abandoned when a Sentinel names another.

When a master dies, its connections close, and the next connect asks a Sentinel. A master that is
replaced while it is alive keeps its connections. It accepts writes, which will be discarded, until
Sentinel makes it a replica about ten seconds later. A second link, to any Sentinel, therefore
subscribes to `+switch-master`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio.sentinel import SentinelConnectionPool

from genesis.backends.redis.endpoint import Endpoint
from genesis.backends.redis.errors import ConnectionLost, NoMasterError
from genesis.backends.redis.link import Link, LinkSettings, ignore
from genesis.backends.redis.router import Router


class SentinelRouter(Router):
    """A link to the master. It reconnects when a Sentinel names another master."""

    is_master = True  # redis-py's connection reads these two
    check_connection = False

    def __init__(self, pool: SentinelConnectionPool, settings: LinkSettings) -> None:
        # The connections to the master ask this router for its address, instead of the pool.
        master = Endpoint(pool, connection_pool=self)
        master.name = f"the master of {pool.service_name!r}"
        super().__init__(master, settings._replace(on_up=self._up))
        self._backend_up = settings.on_up
        self._service: bytes = pool.service_name.encode()
        self._manager = manager = pool.sentinel_manager
        self._loop = asyncio.get_running_loop()
        # Of the last attempt. The connection that is up has the same: `_named` ends it otherwise.
        self._address = ("", 0)
        self._found: asyncio.Future[tuple[str, int]] = self._loop.create_future()
        self._found.set_result(self._address)  # done while no attempt needs an address
        self._sentinel_link = self._connect(
            *(Endpoint(client.connection_pool) for client in manager.sentinels),
            greeting=(),
            # A silent Sentinel leaves time to ask the next.
            timeout=settings.timeout / (len(manager.sentinels) + 2),
            on_up=self._listen,
            on_down=self._sentinel_down,
            on_push=self._ask,
        )
        self._link = self._links[None] = self._connect(master)

    async def get_master_address(self) -> tuple[str, int]:
        """Called by each new connection to the master."""
        self._found = self._loop.create_future()
        self._ask(self._sentinel_link)  # if it is down, `on_up` will ask
        self._address = await self._found
        return self._address

    def _up(self, link: Link) -> None:
        self._backend_up(link)
        self._ask(self._sentinel_link)  # the master might have been replaced meanwhile

    def _listen(self, link: Link) -> None:
        # Without the permission, a replacement is noticed only when the master is lost.
        link.send((b"SUBSCRIBE", b"+switch-master"), ignore)
        self._ask(link)  # messages published before the subscription are lost

    def _ask(self, link: Link, push: object = None) -> None:  # noqa: ARG002
        link.send((b"SENTINEL", b"MASTERS"), self._on_masters)

    def _on_masters(self, reply: Any) -> None:
        if isinstance(reply, ConnectionLost):
            return
        for master in [] if isinstance(reply, Exception) else reply:
            if master[b"name"] == self._service and self._is_sound(master):
                forced = getattr(self._manager, "_force_master_ip", None)
                self._named((forced or master[b"ip"].decode(), int(master[b"port"])))
                return
        if not self._found.done():  # ask another Sentinel
            why = "it knows no such service, or considers its master down"
            if isinstance(reply, Exception):
                why = self._sentinel_link.redact(reply)
            self._sentinel_link.reconnect("refused", f"{self._sentinel_link.endpoint.name}: {why}")

    def _is_sound(self, master: dict[bytes, bytes]) -> bool:
        flags = {*master[b"flags"].split(b",")}
        seen = int(master[b"num-other-sentinels"]) >= self._manager.min_other_sentinels
        return seen and b"master" in flags and not flags & {b"s_down", b"o_down"}

    def _named(self, address: tuple[str, int]) -> None:
        if not self._found.done():
            self._found.set_result(address)
        if self._link.up and address != self._address:
            host, port = address
            self._link.reconnect("read_only", f"Sentinel names another master, {host}:{port}")

    def _sentinel_down(self, link: Link | None, reason: str, detail: str) -> None:  # noqa: ARG002
        """The loss of a Sentinel does not affect the connection to the master."""
        if not self._sentinel_link.untried and not self._found.done():
            self._found.set_exception(NoMasterError(detail, self._sentinel_link.denied))
