"""From a url or a client to the router of its server, Sentinel-managed master or Cluster."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from redis.asyncio import ConnectionPool, Redis, RedisCluster
from redis.asyncio.sentinel import SentinelConnectionPool

from genesis.backends.redis.cluster import ClusterRouter, Nodes
from genesis.backends.redis.endpoint import Endpoint, pool_of_url
from genesis.backends.redis.link import LinkSettings
from genesis.backends.redis.router import Router, SingleRouter
from genesis.backends.redis.sentinel import SentinelRouter

__all__ = ["Servers", "servers_of_client", "servers_of_url"]

_CLUSTERED = (
    " (this server is a node of a Redis Cluster, and serves only a part of the queues: give "
    "client=redis.asyncio.RedisCluster(...) instead)"
)


class Servers(NamedTuple):
    name: str
    """Identifies the data that is stored there; contains no credentials."""
    router: Callable[[LinkSettings], Router]
    """Creates the router, which starts to connect."""
    redact: Callable[[BaseException], str]
    """Formats an error without credentials."""
    clustered: bool = False
    """Whether scripts must declare `guard_key`, see cluster.py."""


def servers_of_url(url: object, timeout: float) -> Servers:
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, got {type(url).__name__}")  # it might hold a password
    return _single(pool_of_url(url), timeout)


def servers_of_client(client: object, timeout: float) -> Servers:
    if isinstance(client, RedisCluster):
        nodes = Nodes(client, timeout)
        first = nodes.endpoint(nodes.seeds[0])
        first.check()
        name = f"cluster {','.join(sorted(f'{host}:{port}' for host, port in nodes.seeds))}"
        return Servers(name, partial(ClusterRouter, nodes), first.redact, clustered=True)
    if not isinstance(client, Redis):
        raise TypeError(
            "client must be a redis.asyncio.Redis (also one that Sentinel.master_for made) or a "
            f"redis.asyncio.RedisCluster, got {type(client).__module__}.{type(client).__qualname__}"
        )
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        if not pool.is_master:
            raise ValueError("client leads to a replica; give what Sentinel.master_for() returns")
        master = Endpoint(pool, timeout, connection_pool=None)
        master.check()
        name = f"sentinel {pool.service_name}"
        return Servers(name, partial(SentinelRouter, pool), master.redact)
    return _single(pool, timeout)


def _single(pool: ConnectionPool, timeout: float) -> Servers:
    endpoint = Endpoint(pool, timeout)
    endpoint.check()

    def redact(error: BaseException) -> str:
        text = endpoint.redact(error)
        if str(error).startswith(("MOVED ", "ASK ", "CLUSTERDOWN ")):
            text += _CLUSTERED
        return text

    return Servers(endpoint.name, partial(SingleRouter, endpoint), redact)
