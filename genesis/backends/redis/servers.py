"""From a url or a client to the router of its server, Sentinel-managed master or Cluster."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.sentinel import SentinelConnectionPool

from genesis.backends.redis.cluster import ClusterRouter
from genesis.backends.redis.endpoint import Endpoint, pool_of_url
from genesis.backends.redis.link import LinkSettings
from genesis.backends.redis.router import Router
from genesis.backends.redis.sentinel import SentinelRouter

Servers: TypeAlias = tuple[str, Callable[[LinkSettings], Router]]
"""A name that identifies the data that is stored there, without credentials, and what creates the
router."""


def servers_of(url: object, client: object | None) -> Servers:
    """The servers of `client` if there is one, otherwise of `url`."""
    if isinstance(client, RedisCluster):
        seeds = list(client.nodes_manager.startup_nodes.values())
        Endpoint(seeds[0]).check()
        name = f"cluster {','.join(sorted(f'{seed.host}:{seed.port}' for seed in seeds))}"
        return name, partial(ClusterRouter, client.nodes_manager)
    if client is not None and not isinstance(client, Redis):
        raise TypeError(
            "client must be a redis.asyncio.Redis (also one that Sentinel.master_for made) or a "
            f"redis.asyncio.RedisCluster, got {type(client).__module__}.{type(client).__qualname__}"
        )
    pool = pool_of_url(url) if client is None else client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        if not pool.is_master:
            raise ValueError("client leads to a replica; give what Sentinel.master_for() returns")
        Endpoint(pool, connection_pool=None).check()
        return f"sentinel {pool.service_name}", partial(SentinelRouter, pool)
    endpoint = Endpoint(pool)
    endpoint.check()
    return endpoint.name, partial(Router, endpoint)
