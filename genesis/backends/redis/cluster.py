"""Routers: from a queue's keys to the link of the server that serves them.

In a Redis Cluster all keys of a queue are in one hash slot, so one master serves the queue. A slot can
move, in a fail-over or because an operator moves it. A command rejected with MOVED, ASK, TRYAGAIN or
CLUSTERDOWN was not run. The backend then sends a `sync` of the queue to the current owner of the slot;
no other ordering rule is needed.

While a slot migrates, its keys are on two nodes, and Redis checks each key when a script touches it. A
key that is missing on this node (or everywhere: an empty queue has no keys) aborts the script after its
first writes. But if a *declared* key is missing, Redis rejects the script before it starts. In a
Cluster every script therefore declares one more key, `guard_key`, which never exists. During a
migration both nodes reject the scripts of the slot completely, and its queues pause until it ends. ASK
is therefore never followed.

The slot map is read at the start, when a link is down or silent, when a slot has moved, and once a
minute.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from typing import Any, NamedTuple, Protocol, TypeAlias

from redis import exceptions as redis_errors
from redis.asyncio import RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.crc import key_slot

from genesis.backends.redis.endpoint import Endpoint, settings
from genesis.backends.redis.errors import is_permanent, reason_of
from genesis.backends.redis.link import Link, backoff
from genesis.backends.redis.scripts import Script

__all__ = ["ClusterRouter", "Nodes", "Router", "RouterSettings", "SingleRouter", "guard_key"]

Address: TypeAlias = tuple[str, int]

_SLOTS = 16384
_REFRESH_EVERY = 60.0  # seconds between two refreshes of the map when nothing is wrong
_REFRESH_DOWN = 0.25  # ... while a node is unreachable: its replica might have taken over
_REFRESH_MOVED = 1.0  # ... after a MOVED: that move is known, but others might follow
_MINORITY_FOR = 5.0  # seconds for which a node that replied CLUSTERDOWN is asked last
_RETRY_CANCELLED = 0.05  # seconds until a cancelled refresh is retried, unless the loop ends first


class RouterSettings(NamedTuple):
    """The settings of every router; see `Link` for most of them."""

    channel: bytes
    scripts: Sequence[Script]
    timeout: float
    probe_interval: float
    on_up: Callable[[Link], None]
    on_down: Callable[[Link | None, str, str, bool], None]
    """As in `Link`; with None for the link if the slot map cannot be read."""
    on_push: Callable[[Link, list[Any]], None]
    on_moved: Callable[[], None] = lambda: None
    """The result of `Router.link` might have changed for any queue. Links that `Router.links()` no
    longer lists are closed. Also called when the map can be read again."""

    def link(self, endpoint: Endpoint, on_silent: Callable[[Link], None] | None = None) -> Link:
        return Link(endpoint, *self[:7], on_silent)


class Router(Protocol):
    """Belongs to the event loop that runs when it is created."""

    def link(self, key: bytes) -> Link | None:
        """The link to the server that serves `key`, up or down; None while no server is known."""

    def redirected(self, key: bytes, error: BaseException) -> bool:
        """Whether `error` means that another server serves `key`, or none for now.

        If so, the router finds the right server. Retry on `link(key)`: at once after the first MOVED,
        otherwise after a short delay.
        """

    def why_down(self, key: bytes) -> str:
        """Why no command on `key` can be sent; "" if it can be sent."""

    def denied(self, key: bytes) -> bool:
        """See `Link`."""

    def links(self) -> Iterable[Link]:
        """The links in use."""

    def abort(self) -> None:
        """Close all links without waiting."""

    async def close(self, timeout: float) -> None:
        """Close all links after the outstanding replies, at most `timeout` seconds later."""


class SingleRouter:
    """One link for all queues."""

    def __init__(self, endpoint: Endpoint, settings: RouterSettings) -> None:
        self._link = settings.link(endpoint)

    def link(self, key: bytes) -> Link | None:  # noqa: ARG002
        return self._link

    def redirected(self, key: bytes, error: BaseException) -> bool:  # noqa: ARG002
        return False

    def why_down(self, key: bytes) -> str:  # noqa: ARG002
        return self._link.why_down

    def denied(self, key: bytes) -> bool:  # noqa: ARG002
        return self._link.denied

    def links(self) -> Iterable[Link]:
        return (self._link,)

    def abort(self) -> None:
        self._link.close()

    async def close(self, timeout: float) -> None:
        self._link.close()
        await self._link.wait_closed(timeout)


def guard_key(keys: Sequence[bytes]) -> bytes:
    """The extra key that a script on `keys` declares in a Cluster, see the module docstring."""
    tagged = keys[0]
    return tagged[: tagged.index(b"}") + 1] + b":never"


class Nodes:
    """The startup nodes of a client's cluster, and how to connect to its nodes."""

    def __init__(self, client: RedisCluster, timeout: float) -> None:
        seeds = list(client.nodes_manager.startup_nodes.values())
        self.seeds: list[Address] = [(node.host, int(node.port)) for node in seeds]
        self._class: type[AbstractConnection] = seeds[0].connection_class
        self._kwargs = settings(self._class, seeds[0].connection_kwargs, timeout)
        self._kwargs.pop("redis_connect_func", None)  # set by redis-py, for reading from replicas
        self._remap = client.nodes_manager.remap_host_port

    def remap(self, host: str, port: int) -> Address:
        """The address for connecting to a node that the cluster lists as `host` and `port`."""
        host, port = self._remap(host, port)
        return host, int(port)

    def endpoint(self, address: Address) -> Endpoint:
        return Endpoint(self._class, {**self._kwargs, "host": address[0], "port": address[1]})


class ClusterRouter:
    """Keeps one link to each master that serves a queue in use. See the module docstring."""

    def __init__(self, nodes: Nodes, settings: RouterSettings) -> None:
        self._nodes = nodes
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._owners: list[Address | None] = [None] * _SLOTS
        self._known: set[Address] = set(nodes.seeds)  # masters and replicas
        self._links: dict[Address, Link] = {}
        self._retired: list[Link] = []
        self._minority: dict[Address, float] = {}  # by loop.time(): until when
        self._refresh: asyncio.Task[Any] | None = None
        self._refresh_timer: asyncio.TimerHandle | None = None
        self._refresh_due = math.inf
        self._not_before = 0.0  # by loop.time(): no refresh earlier
        self._failures = 0
        self._why_no_map = "the map of slots is not known yet"
        self._denied = False
        self._closing = False
        self._refresh_in(0.0)

    def link(self, key: bytes) -> Link | None:
        address = self._owners[key_slot(key)]
        if address is None or self._closing:
            self._refresh_in(_REFRESH_DOWN)
            return None
        link = self._links.get(address)
        if link is None:
            own = self._settings._replace(on_down=self._link_down)
            link = own.link(self._nodes.endpoint(address), self._link_silent)
            self._links[address] = link
        return link

    def redirected(self, key: bytes, error: BaseException) -> bool:
        kind, _, rest = str(error).partition(" ")
        slot = key_slot(key)
        owner = self._owners[slot]
        if kind == "MOVED":
            host, _, port = rest.rpartition(" ")[2].rpartition(":")
            # A node that does not know its own host name sends an empty one.
            self._owners[slot] = self._nodes.remap(host or (owner or ("",))[0], int(port))
            self._refresh_in(_REFRESH_MOVED)
        elif kind == "CLUSTERDOWN":
            if owner is not None:  # it sees no majority, so its map might be outdated
                self._minority[owner] = self._loop.time() + _MINORITY_FOR
            self._refresh_in(0.0)
        elif kind not in ("ASK", "TRYAGAIN"):
            return False
        return True

    def why_down(self, key: bytes) -> str:
        link = self.link(key)
        return self._why_no_map or "no node serves its slot" if link is None else link.why_down

    def denied(self, key: bytes) -> bool:
        link = self.link(key)
        return self._denied if link is None else link.denied

    def links(self) -> Iterable[Link]:
        return tuple(self._links.values())

    def abort(self) -> None:
        self._close()

    def _close(self) -> list[Link]:
        self._closing = True
        if self._refresh_timer is not None:
            self._refresh_timer.cancel()
        if self._refresh is not None:
            self._refresh.cancel()
        links = [*self._links.values(), *self._retired]
        self._links.clear()
        for link in links:
            link.close()
        return links

    async def close(self, timeout: float) -> None:
        links = self._close()
        refresh = self._refresh
        while refresh is not None and not refresh.done():
            refresh.cancel()
            await asyncio.wait({refresh}, timeout=0.05)
        await asyncio.gather(*(link.wait_closed(timeout) for link in links))

    # Refreshing the map

    def _link_down(self, link: Link | None, reason: str, detail: str, alarm: bool) -> None:
        self._refresh_in(0.0)
        self._settings.on_down(link, reason, detail, alarm)

    def _link_silent(self, link: Link) -> None:  # noqa: ARG002
        # A replica might take over long before the connection to the master is given up.
        self._refresh_in(0.0)

    def _refresh_in(self, seconds: float) -> None:
        """Refresh the map in `seconds`, or earlier if that is scheduled already."""
        due = max(self._loop.time() + seconds, self._not_before)
        if self._closing or self._refresh_due <= due or self._refresh is not None:
            return  # a running refresh schedules the next one when it ends
        if self._refresh_timer is not None:
            self._refresh_timer.cancel()
        self._refresh_due = due
        self._refresh_timer = self._loop.call_at(due, self._start_refresh, context=Context())

    def _start_refresh(self) -> None:
        self._refresh_timer, self._refresh_due = None, math.inf
        self._refresh = Context().run(
            self._loop.create_task, self._fetch_map(), name="genesis-redis-map"
        )
        self._refresh.add_done_callback(self._refreshed, context=Context())

    def _refreshed(self, refresh: asyncio.Task[Any]) -> None:
        self._refresh = None
        if self._closing:
            return
        if refresh.cancelled():
            self._refresh_in(_RETRY_CANCELLED)
            return
        error = refresh.exception()
        if error is None:
            recovered, self._why_no_map, self._denied = bool(self._why_no_map), "", False
            self._failures = 0
            owners, masters, self._known = refresh.result()
            self._apply_map(owners, masters, recovered)
        else:
            text = self._nodes.endpoint(self._nodes.seeds[0]).redact(error)
            self._why_no_map = f"the map of slots: {text}"
            self._denied = is_permanent(error, was_up=self._owners != [None] * _SLOTS)
            self._failures += 1
            self._settings.on_down(None, reason_of(error), self._why_no_map, True)
        self._not_before = self._loop.time() + backoff(self._failures)
        away = any(not link.up or link.silent for link in self._links.values())
        # No message announces that a slot without a master has one again: poll for its queues.
        away = away or None in self._owners
        self._refresh_in(0.0 if self._failures else _REFRESH_DOWN if away else _REFRESH_EVERY)

    async def _fetch_map(self) -> tuple[list[Address | None], set[Address], set[Address]]:
        """Ask the nodes for the map, in turn, until one replies."""
        timeout = self._settings.timeout
        share = max(timeout / 4, min(timeout, 1.0))
        broken: Exception = redis_errors.ConnectionError("no node of the cluster is known")
        for address in self._candidates():
            try:
                rows = await asyncio.wait_for(self._cluster_slots(address), share)
                return self._parse_map(rows, address)
            except asyncio.TimeoutError:
                broken = redis_errors.TimeoutError(f"no answer from {address} within {share:g} s")
            except (redis_errors.RedisError, OSError) as error:
                broken = error
        raise broken

    async def _cluster_slots(self, address: Address) -> Any:
        connection = self._nodes.endpoint(address).connection()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            packed = connection.pack_command("CLUSTER", "SLOTS")
            await connection.send_packed_command(packed, check_health=False)
            return await connection.read_response(timeout=math.inf, disconnect_on_error=False)
        finally:
            await connection.disconnect(nowait=True)

    def _candidates(self) -> list[Address]:
        """All known nodes, shuffled; nodes that are unreachable, silent or in a minority come last."""
        now = self._loop.time()

        def suspect(address: Address) -> bool:
            link = self._links.get(address)
            away = link is not None and (not link.up or link.silent)
            return away or self._minority.get(address, 0.0) > now

        found = list({*self._known, *self._nodes.seeds})
        random.shuffle(found)
        return sorted(found, key=suspect)

    def _parse_map(
        self, rows: Any, asked: Address
    ) -> tuple[list[Address | None], set[Address], set[Address]]:
        """Rows are `[first slot, last slot, master, replica, ...]`; a node is `[host, port, ...]`."""
        owners: list[Address | None] = [None] * _SLOTS
        masters: set[Address] = set()
        known: set[Address] = set()
        for first, last, *nodes in rows:
            # A node that does not know its own host name sends an empty one.
            found = [self._nodes.remap((n[0] or b"").decode() or asked[0], n[1]) for n in nodes]
            masters.add(found[0])
            known.update(found)
            owners[first : last + 1] = [found[0]] * (last + 1 - first)
        if not masters:
            raise redis_errors.ClusterDownError("CLUSTERDOWN no node serves any slot")
        return owners, masters, known

    def _apply_map(
        self,
        owners: list[Address | None],
        masters: set[Address],
        recovered: bool,
    ) -> None:
        changed = owners != self._owners
        self._owners = owners
        self._retired = [link for link in self._retired if not link.ended]
        for address in self._links.keys() - masters:
            link = self._links.pop(address)
            if link.silent:  # do not wait for its replies: it was replaced because it is silent
                link.reconnect("timeout", "the node is silent, and was replaced")
            link.close()
            self._retired.append(link)
            changed = True
        if changed or recovered:
            self._settings.on_moved()
