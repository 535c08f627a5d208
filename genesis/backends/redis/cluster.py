"""The router of a Redis Cluster: which master serves a queue.

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
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextvars import Context
from typing import TypeAlias

from redis.asyncio.cluster import NodesManager
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from genesis.backends.redis.endpoint import Endpoint
from genesis.backends.redis.link import Link, LinkSettings
from genesis.backends.redis.router import Router

Address: TypeAlias = tuple[str, int]

_REFRESH_EVERY = 60.0  # seconds between two refreshes of the map when nothing is wrong
_REFRESH_DOWN = 0.25  # ... while a node is unreachable: its replica might have taken over
_REFRESH_MOVED = 1.0  # ... after a MOVED: that move is known, but others might follow
_REFRESH_LEAST = 0.02  # ... whatever happens
_UNSERVED = "no node serves its slot"


def guard_key(keys: Sequence[bytes]) -> bytes:
    """The extra key that a script on `keys` declares in a Cluster, see the module docstring."""
    tagged = keys[0]
    return tagged[: tagged.index(b"}") + 1] + b":never"


class ClusterRouter(Router):
    """Keeps one link to each master that serves a queue in use. See the module docstring."""

    clustered = True

    def __init__(self, nodes: NodesManager, settings: LinkSettings) -> None:
        seeds = list(nodes.startup_nodes.values())
        super().__init__(Endpoint(seeds[0]), settings)
        self._nodes = nodes
        self._given = seeds[0]
        self._seeds: list[Address] = [(seed.host, int(seed.port)) for seed in seeds]
        self._loop = asyncio.get_running_loop()
        self._owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._known = {*self._seeds}  # masters and replicas
        self._map_link: Link | None = None  # while the map is being read: to any node
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # by loop.time(): when the timer fires
        self._why_unknown = "the map of slots is not known yet"
        self._closing = False
        self._refresh()

    def link(self, key: bytes) -> Link | None:
        address = self._owners[key_slot(key)]
        if address is None or self._closing:
            self._refresh_in(_REFRESH_DOWN)
            return None
        link = self._links.get(address)
        if link is None:
            # A replica might take over long before the connection to a silent master is given up.
            link = self._links[address] = self._connect(
                self._endpoint_of(address),
                on_down=self._link_down,
                on_silent=lambda link: self._refresh_in(0.0),  # noqa: ARG005
            )
            # The map might be outdated, and name a node that is away: while it is not up, poll the map.
            self._refresh_in(_REFRESH_DOWN)
        return link

    def redirected(self, key: bytes, error: BaseException) -> bool:
        kind, _, rest = str(error).partition(" ")
        slot = key_slot(key)
        if kind == "MOVED":
            host, _, port = rest.rpartition(" ")[2].rpartition(":")
            asked, _ = self._owners[slot] or ("", 0)
            self._owners[slot] = self._address(host, port, asked)
            self._why_unknown = "a slot has moved"  # the next map counts as changed
            self._refresh_in(_REFRESH_MOVED)
        elif kind == "CLUSTERDOWN":
            # It sees no majority, so its map might be outdated. If just this node is asked for the map,
            # its next CLUSTERDOWN leads to another refresh.
            self._refresh_in(0.0)
        elif kind not in ("ASK", "TRYAGAIN"):
            return False
        return True

    def abort(self) -> None:
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._links.clear()
        super().abort()

    def _endpoint_of(self, address: Address) -> Endpoint:
        host, port = address
        # redis-py sets `redis_connect_func`, for reading from replicas.
        return Endpoint(self._given, host=host, port=port, redis_connect_func=None)

    def _address(self, host: str, port: int | str, asked: str) -> Address:
        """Where to connect to a node that the host `asked` lists as `host` and `port`."""
        # A node that does not know its own host name sends an empty one.
        host, port = self._nodes.remap_host_port(host or asked, int(port))
        return host, int(port)

    # Refreshing the map

    def _link_down(self, link: Link | None, reason: str, detail: str) -> None:
        self._refresh_in(0.0)
        self._settings.on_down(link, reason, detail)

    def _refresh_in(self, seconds: float) -> None:
        """Refresh the map in `seconds`, or earlier if that is scheduled already."""
        due = self._loop.time() + max(seconds, _REFRESH_LEAST)
        if self._closing or self._map_link is not None:
            return  # a running refresh schedules the next one when it ends
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_at(due, self._refresh, context=Context())

    def _refresh(self) -> None:
        self._timer = None
        timeout = self._settings.timeout
        self._map_link = self._connect(
            *self._candidates(),
            greeting=[(b"CLUSTER", b"SLOTS")],
            timeout=max(timeout / 4, min(timeout, 1.0)),
            on_up=self._refreshed,
            on_down=self._not_refreshed,
            was_up=any(self._owners),
        )

    def _candidates(self) -> list[Endpoint]:
        """All known nodes, shuffled; those that are unreachable or silent come last."""
        away = {address for address, link in self._links.items() if not link.responsive}
        found = [*self._known]
        random.shuffle(found)
        return [self._endpoint_of(address) for address in sorted(found, key=away.__contains__)]

    def _not_refreshed(self, link: Link | None, reason: str, detail: str) -> None:
        """No node has sent the map. The link asks them again."""
        if link is not None and link.untried:
            return  # this node serves no slot; the others are asked next
        self._why_unknown = f"the map of slots: {detail}"
        self._unknown_for_good = link is not None and link.denied
        self._settings.on_down(None, reason, self._why_unknown)

    def _refreshed(self, link: Link) -> None:
        """Rows are `[first slot, last slot, master, replica, ...]`; a node is `[host, port, ...]`."""
        owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        known = {*self._seeds}
        try:
            for first, last, *nodes in link.answer:
                asked = link.endpoint.host
                found = [self._address((n[0] or b"").decode(), n[1], asked) for n in nodes]
                known.update(found)
                owners[first : last + 1] = [found[0]] * (last + 1 - first)
        except Exception as error:  # it might be of the client's `address_remap`
            link.reconnect("other", f"the map cannot be read: {error!r}")
            return
        masters = {*owners} - {None}
        if not masters:
            link.reconnect("cluster_down", "no node serves any slot")
            return
        link.close()
        self._map_link = None
        changed = owners != self._owners or self._why_unknown != _UNSERVED
        self._owners, self._known = owners, known
        self._why_unknown, self._unknown_for_good = _UNSERVED, False
        for address in self._links.keys() - masters:
            replaced = self._links.pop(address)
            if not replaced.responsive:  # do not wait for its replies
                replaced.reconnect("timeout", "the node is silent, and was replaced")
            replaced.close()
            changed = True
        if changed:
            self._settings.on_moved()
        # No message announces that a slot without a master has one again: poll for its queues.
        away = None in owners or not all(link.responsive for link in self._links.values())
        self._refresh_in(_REFRESH_DOWN if away else _REFRESH_EVERY)
