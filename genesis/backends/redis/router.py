"""Routers: from a queue's keys to the link of the server that serves them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from genesis.backends.redis.endpoint import Endpoint
from genesis.backends.redis.link import Link, LinkSettings

_CLUSTERED = (
    " (this server is a node of a Redis Cluster, and serves only a part of the queues: give "
    "client=redis.asyncio.RedisCluster(...) instead)"
)


class Router:
    """One link for all queues; the routers of Sentinel and Cluster derive from this one.

    Belongs to the event loop that runs when it is created. `endpoint` leads to one of its servers. It
    calls `LinkSettings.on_moved` when the result of `link` might have changed for any queue, or when
    the servers are known again. Links that `links` no longer returns are closed then.
    """

    clustered = False  # whether scripts must declare `guard_key`, see cluster.py

    def __init__(self, endpoint: Endpoint, settings: LinkSettings) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._links: dict[Any, Link] = {}  # in use, by server
        self._made: list[Link] = []  # also those that are closing
        self._why_unknown = ""  # why `link` returns None, if it does
        self._unknown_for_good = False  # see `denied`

    def link(self, key: bytes) -> Link | None:  # noqa: ARG002
        """The link to the server that serves `key`, up or down; None while no server is known."""
        if not self._links:
            self._links[None] = self._connect(self._endpoint)
        return self._links[None]

    def links(self) -> Sequence[Link]:
        """The links in use."""
        return tuple(self._links.values())

    def redirected(self, key: bytes, error: BaseException) -> bool:  # noqa: ARG002
        """Whether `error` means that another server serves `key`, or none for now.

        If so, the router finds the right server. Retry on `link(key)`: at once after the first MOVED,
        otherwise after a short delay.
        """
        return False

    def redact(self, error: BaseException) -> str:
        """Format an error without credentials."""
        text = self._endpoint.redact(error)
        if not self.clustered and str(error).startswith(("MOVED ", "ASK ", "CLUSTERDOWN ")):
            text += _CLUSTERED
        return text

    def why_down(self, key: bytes) -> str:
        """Why no command on `key` can be sent; "" if it can be sent."""
        link = self.link(key)
        return self._why_unknown if link is None else link.why_down

    def denied(self, key: bytes) -> bool:
        """See `Link`."""
        link = self.link(key)
        return self._unknown_for_good if link is None else link.denied

    def abort(self) -> None:
        """Close all links without waiting."""
        for link in self._made:
            link.close()

    async def close(self, timeout: float) -> None:
        """Close all links after the outstanding replies, at most `timeout` seconds later."""
        self.abort()
        await asyncio.gather(*(link.wait_closed(timeout) for link in self._made))

    def _connect(self, *endpoints: Endpoint, **changes: Any) -> Link:
        """A new link to one of `endpoints`, with `changes` to the settings."""
        self._made = [link for link in self._made if not link.ended]
        link = Link(endpoints, self._settings._replace(**changes))
        self._made.append(link)
        return link
