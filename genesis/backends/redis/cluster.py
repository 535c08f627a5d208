"""Which link serves a queue: the only one, or that of the master that has the queue's slot.

In a Redis Cluster all keys of a queue are in one hash slot, so one master serves the queue. Slots
change hands: by a fail-over, or because an operator moves them. A command that is rejected for it
(MOVED, ASK, TRYAGAIN, CLUSTERDOWN) was not carried out. The backend then sends a `sync` of the queue to
whoever has the slot by the map as now known; no other rule for order is needed.

While a slot migrates, its keys are on two nodes, and Redis checks each key when a script touches it.
One that is not here (or nowhere: an empty line has no key) ends the script half way, its first writes
done. If a *declared* key is not here, Redis rejects the script before it begins. So in a Cluster every
script declares one key more, `guard_key`, which never exists: scripts are rejected while their slot
migrates, whole, on both sides, and a queue stands still as long as its slot takes. For that reason
nothing follows ASK.

The map of slots is read at the start, when a link is down or silent, when a slot has moved, and once a
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
from genesis.backends.redis.errors import is_lasting, reason_of
from genesis.backends.redis.link import Link, backoff
from genesis.backends.redis.scripts import Script

__all__ = ["ClusterRouter", "Nodes", "Router", "RouterSettings", "SingleRouter", "guard_key"]

Address: TypeAlias = tuple[str, int]

_SLOTS = 16384
_LOOK_EVERY = 60.0  # seconds between two looks at the map when nothing is wrong
_LOOK_AGAIN = 0.25  # ... while a node is out of reach: its replica may have taken over
_LOOK_AFTER_MOVE = 1.0  # ... while slots move: the move itself is known, others may come
_OUTCAST_FOR = 5.0  # seconds for which the map of a node without a majority is asked for last
_AGAIN = 0.05  # seconds after which a cancelled look is repeated: not in a loop that is ending


class RouterSettings(NamedTuple):
    """What every router is made with; see `Link` for the most."""

    channel: bytes
    scripts: Sequence[Script]
    timeout: float
    probe_interval: float
    on_up: Callable[[Link], None]
    on_down: Callable[[Link | None, str, str, bool], None]
    """As that of `Link`; None instead of a link: the map of slots cannot be read."""
    on_push: Callable[[Link, list[Any]], None]
    on_moved: Callable[[], None] = lambda: None
    """`Router.link` may answer otherwise than before for any queue, and links that are not in
    `Router.links()` any more are closed. Called also when the map can be read again."""

    def link(self, endpoint: Endpoint, on_silent: Callable[[Link], None] | None = None) -> Link:
        return Link(endpoint, *self[:7], on_silent)


class Router(Protocol):
    """Belongs to the event loop that runs when it is made."""

    def link(self, key: bytes) -> Link | None:
        """The link to the server that serves `key`, up or not; None while none is known."""

    def redirected(self, key: bytes, error: BaseException) -> bool:
        """Whether `error` rejected a command on `key` because another server serves it, or none yet.

        If so, the router looks for the right one. Send to `link(key)` anew: at once after the first
        MOVED, after a small delay else.
        """

    def why_down(self, key: bytes) -> str:
        """Why no command on `key` can be sent; "" if it can."""

    def denied(self, key: bytes) -> bool:
        """See `Link`."""

    def links(self) -> Iterable[Link]:
        """The links that are in use."""

    def abort(self) -> None:
        """Close all links without waiting for anything."""

    async def close(self, timeout: float) -> None:
        """Close all links once the replies that are due have come; `timeout` seconds at most."""


class SingleRouter:
    """One server serves all."""

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
    """The key that a script on `keys` declares besides in a Cluster: see the module's text."""
    tagged = keys[0]
    return tagged[: tagged.index(b"}") + 1] + b":never"


class Nodes:
    """How the nodes of a given client's cluster are connected to, and the first to ask."""

    def __init__(self, client: RedisCluster, timeout: float) -> None:
        seeds = list(client.nodes_manager.startup_nodes.values())
        self.seeds: list[Address] = [(node.host, int(node.port)) for node in seeds]
        self._class: type[AbstractConnection] = seeds[0].connection_class
        self._kwargs = settings(self._class, seeds[0].connection_kwargs, timeout)
        self._kwargs.pop("redis_connect_func", None)  # redis-py's own: for reading from replicas
        self._remap = client.nodes_manager.remap_host_port

    def reach(self, host: str, port: int) -> Address:
        """The address at which a node that calls itself `host` is reached from here."""
        host, port = self._remap(host, port)
        return host, int(port)

    def endpoint(self, address: Address) -> Endpoint:
        return Endpoint(self._class, {**self._kwargs, "host": address[0], "port": address[1]})


class ClusterRouter:
    """See the module's text. One link to each master that serves a queue in use."""

    def __init__(self, nodes: Nodes, settings: RouterSettings) -> None:
        self._nodes = nodes
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._owners: list[Address | None] = [None] * _SLOTS
        self._known: set[Address] = set(nodes.seeds)  # masters and replicas
        self._links: dict[Address, Link] = {}
        self._retired: list[Link] = []
        self._outcasts: dict[Address, float] = {}
        self._look: asyncio.Task[Any] | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._look_due = math.inf
        self._not_before = 0.0  # by loop.time(): the next look
        self._failures = 0
        self._why_no_map = "the map of slots is not known yet"
        self._denied = False
        self._closing = False
        self._look_in(0.0)

    def link(self, key: bytes) -> Link | None:
        address = self._owners[key_slot(key)]
        if address is None or self._closing:
            self._look_in(_LOOK_AGAIN)
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
            # A node that does not know its own name leaves it out.
            self._owners[slot] = self._nodes.reach(host or (owner or ("",))[0], int(port))
            self._look_in(_LOOK_AFTER_MOVE)
        elif kind == "CLUSTERDOWN":
            if owner is not None:  # it knows of no majority; its map is not to be trusted
                self._outcasts[owner] = self._loop.time() + _OUTCAST_FOR
            self._look_in(0.0)
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
        if self._look_timer is not None:
            self._look_timer.cancel()
        if self._look is not None:
            self._look.cancel()
        links = [*self._links.values(), *self._retired]
        self._links.clear()
        for link in links:
            link.close()
        return links

    async def close(self, timeout: float) -> None:
        links = self._close()
        look = self._look
        while look is not None and not look.done():
            look.cancel()
            await asyncio.wait({look}, timeout=0.05)
        await asyncio.gather(*(link.wait_closed(timeout) for link in links))

    # Looking at the map

    def _link_down(self, link: Link | None, reason: str, detail: str, alarm: bool) -> None:
        self._look_in(0.0)
        self._settings.on_down(link, reason, detail, alarm)

    def _link_silent(self, link: Link) -> None:  # noqa: ARG002
        # Its replica may have taken over, long before the connection is given up as dead.
        self._look_in(0.0)

    def _look_in(self, seconds: float) -> None:
        """Look at the map in so many seconds, or sooner if that is intended already."""
        due = max(self._loop.time() + seconds, self._not_before)
        if self._closing or self._look_due <= due or self._look is not None:
            return  # a look that is under way decides about the next one when it has ended
        if self._look_timer is not None:
            self._look_timer.cancel()
        self._look_due = due
        self._look_timer = self._loop.call_at(due, self._begin_look, context=Context())

    def _begin_look(self) -> None:
        self._look_timer, self._look_due = None, math.inf
        self._look = Context().run(self._loop.create_task, self._ask_one(), name="genesis-redis-map")
        self._look.add_done_callback(self._looked, context=Context())

    def _looked(self, look: asyncio.Task[Any]) -> None:
        self._look = None
        if self._closing:
            return
        if look.cancelled():
            self._look_in(_AGAIN)
            return
        error = look.exception()
        if error is None:
            recovered, self._why_no_map, self._denied = bool(self._why_no_map), "", False
            self._failures = 0
            owners, masters, self._known = look.result()
            self._take_in(owners, masters, recovered)
        else:
            told = self._nodes.endpoint(self._nodes.seeds[0]).tell(error)
            self._why_no_map = f"the map of slots: {told}"
            self._denied = is_lasting(error, was_up=self._owners != [None] * _SLOTS)
            self._failures += 1
            self._settings.on_down(None, reason_of(error), self._why_no_map, True)
        self._not_before = self._loop.time() + backoff(self._failures)
        away = any(not link.up or link.silent for link in self._links.values())
        # A slot without a master: nobody tells when it has one, and its queues wait for that.
        away = away or None in self._owners
        self._look_in(0.0 if self._failures else _LOOK_AGAIN if away else _LOOK_EVERY)

    async def _ask_one(self) -> tuple[list[Address | None], set[Address], set[Address]]:
        """Ask one node after the other for the map, until one answers."""
        timeout = self._settings.timeout
        share = max(timeout / 4, min(timeout, 1.0))
        broken: Exception = redis_errors.ConnectionError("no node of the cluster is known")
        for address in self._in_order_of_trust():
            try:
                rows = await asyncio.wait_for(self._ask(address), share)
                return self._read_map(rows, address)
            except asyncio.TimeoutError:
                broken = redis_errors.TimeoutError(f"no answer from {address} within {share:g} s")
            except (redis_errors.RedisError, OSError) as error:
                broken = error
        raise broken

    async def _ask(self, address: Address) -> Any:
        connection = self._nodes.endpoint(address).connection()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            packed = connection.pack_command("CLUSTER", "SLOTS")
            await connection.send_packed_command(packed, check_health=False)
            return await connection.read_response(timeout=math.inf, disconnect_on_error=False)
        finally:
            await connection.disconnect(nowait=True)

    def _in_order_of_trust(self) -> list[Address]:
        """Shuffled, but nodes that are out of reach, silent or in a minority come last."""
        now = self._loop.time()

        def doubtful(address: Address) -> bool:
            link = self._links.get(address)
            away = link is not None and (not link.up or link.silent)
            return away or self._outcasts.get(address, 0.0) > now

        found = list({*self._known, *self._nodes.seeds})
        random.shuffle(found)
        return sorted(found, key=doubtful)

    def _read_map(
        self, rows: Any, asked: Address
    ) -> tuple[list[Address | None], set[Address], set[Address]]:
        """`[first slot, last slot, master, replica, ...]`; a node is `[host, port, ...]`."""
        owners: list[Address | None] = [None] * _SLOTS
        masters: set[Address] = set()
        known: set[Address] = set()
        for first, last, *nodes in rows:
            # A node that does not know its own name leaves it out.
            found = [self._nodes.reach((n[0] or b"").decode() or asked[0], n[1]) for n in nodes]
            masters.add(found[0])
            known.update(found)
            owners[first : last + 1] = [found[0]] * (last + 1 - first)
        if not masters:
            raise redis_errors.ClusterDownError("CLUSTERDOWN no node serves any slot")
        return owners, masters, known

    def _take_in(
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
            if link.silent:  # it was replaced because of that
                link.leave("timeout", "the node is silent, and was replaced")
            link.close()
            self._retired.append(link)
            changed = True
        if changed or recovered:
            self._settings.on_moved()
