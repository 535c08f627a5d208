"""From a url or a client to the router of its server, Sentinel-managed master or Cluster."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from redis.asyncio import ConnectionPool, Redis, RedisCluster
from redis.asyncio.sentinel import SentinelConnectionPool

from genesis.backends.redis.cluster import ClusterRouter
from genesis.backends.redis.endpoint import Endpoint, pool_of_url
from genesis.backends.redis.link import LinkSettings
from genesis.backends.redis.router import Router, SingleRouter
from genesis.backends.redis.sentinel import SentinelRouter

Servers: TypeAlias = tuple[str, Callable[[LinkSettings], Router]]
"""A name that identifies the data that is stored there, without credentials, and what creates the
router, which starts to connect."""


def servers_of_url(url: object) -> Servers:
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, got {type(url).__name__}")  # it might hold a password
    return _servers_of_pool(pool_of_url(url))


def servers_of_client(client: object) -> Servers:
    if isinstance(client, Redis):
        return _servers_of_pool(client.connection_pool)
    if not isinstance(client, RedisCluster):
        raise TypeError(
            "client must be a redis.asyncio.Redis (also one that Sentinel.master_for made) or a "
            f"redis.asyncio.RedisCluster, got {type(client).__module__}.{type(client).__qualname__}"
        )
    seeds = list(client.nodes_manager.startup_nodes.values())
    Endpoint(seeds[0]).check()
    name = f"cluster {','.join(sorted(f'{seed.host}:{seed.port}' for seed in seeds))}"
    return name, partial(ClusterRouter, client.nodes_manager)


def _servers_of_pool(pool: ConnectionPool) -> Servers:
    if isinstance(pool, SentinelConnectionPool):
        if not pool.is_master:
            raise ValueError("client leads to a replica; give what Sentinel.master_for() returns")
        Endpoint(pool, connection_pool=None).check()
        return f"sentinel {pool.service_name}", partial(SentinelRouter, pool)
    endpoint = Endpoint(pool)
    endpoint.check()
    return endpoint.name, partial(SingleRouter, endpoint)
