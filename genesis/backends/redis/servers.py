"""The server, the master behind Sentinels, or the Cluster that a url or a client leads to."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from redis.asyncio import Redis

from genesis.backends.redis.cluster import Router, RouterSettings, SingleRouter
from genesis.backends.redis.endpoint import Endpoint, endpoint_of_pool, pool_of_url

__all__ = ["Servers", "servers_of_client", "servers_of_url"]


class Servers(NamedTuple):
    name: str
    """Tells apart what holds different data; without credentials."""
    router: Callable[[RouterSettings], Router]
    """Begins to connect."""
    tell: Callable[[BaseException], str]
    """An error in words, without credentials."""


def servers_of_url(url: object, timeout: float) -> Servers:
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, got {type(url).__name__}")  # not shown: see pool_of_url
    return _single(endpoint_of_pool(pool_of_url(url), timeout))


def servers_of_client(client: object, timeout: float) -> Servers:
    if not isinstance(client, Redis):
        raise TypeError(
            "client must be a redis.asyncio.Redis (also one that Sentinel.master_for made) or a "
            f"redis.asyncio.RedisCluster, got {type(client).__module__}.{type(client).__qualname__}"
        )
    return _single(endpoint_of_pool(client.connection_pool, timeout))


def _single(endpoint: Endpoint) -> Servers:
    endpoint.check()
    return Servers(endpoint.name, lambda settings: SingleRouter(endpoint, settings), endpoint.tell)
