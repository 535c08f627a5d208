"""From a url to a client for a server, for a master behind Sentinels, or for a Cluster."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote, urlsplit

from redis import ConnectionPool, Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

_FORMS = (
    "redis://[[user]:password@]host[:port][/db], rediss://... for TLS, unix://[user@]/path, "
    "redis+sentinel://[[user]:password@]host:port,host:port/service[/db][?sentinel_password=...], "
    "or redis+cluster://[[user]:password@]host:port,host:port; rediss+... for TLS"
)


def connect(url: str, timeout: float) -> Redis | RedisCluster:
    """A client for `url`. A Cluster client connects at once, any other with its first command.

    Args:
        url: see `_FORMS`; options after `?` go to redis-py, for example `ssl_ca_certs=/path`.
        timeout: seconds, for connecting and for each reply.

    Raises:
        ValueError: the url is malformed. The message does not repeat it: it might hold a password.
        redis.exceptions.RedisClusterException: the Cluster cannot be reached.
    """
    try:
        client = _connect(url, timeout)
        if isinstance(client, Redis):
            client.connection_pool.make_connection()  # not opened: raises if an option is wrong
        return client
    except (ValueError, TypeError):
        raise ValueError(f"the url cannot be used (it is not shown). Forms: {_FORMS}") from None


def _connect(url: str, timeout: float) -> Redis | RedisCluster:
    settings: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    # Whatever the url says. redis-py's replies to RESP3 depend on its version.
    fixed: dict[str, Any] = {"protocol": 2, "decode_responses": False}
    once = Retry(NoBackoff(), 0)
    parts = urlsplit(url)
    transport, _, kind = parts.scheme.partition("+")
    if not kind:
        pool = ConnectionPool.from_url(url, retry=once, **settings)
        pool.connection_kwargs |= fixed
        return Redis.from_pool(pool)
    if transport not in ("redis", "rediss") or kind not in ("sentinel", "cluster"):
        raise ValueError("unknown scheme")
    # redis-py reads the user, the password and the options, but no list of hosts.
    login, at, hosts = parts.netloc.rpartition("@")
    settings |= parse_url(f"{transport}://{login}{at}?{parts.query}")  # type: ignore[no-untyped-call]
    settings |= fixed
    if settings.pop("connection_class", None):
        settings["ssl"] = True
    if kind == "cluster":
        nodes = [ClusterNode(*each) for each in _addresses(hosts, 6379)]  # type: ignore[no-untyped-call]
        return RedisCluster(startup_nodes=nodes, **settings)
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("no service")
    settings["retry"] = once
    theirs = {name: settings.pop(name) for name in list(settings) if name.startswith("sentinel_")}
    own = {name: settings[name] for name in settings if name not in ("username", "password")}
    own |= {name.removeprefix("sentinel_"): value for name, value in theirs.items()}
    settings["db"] = int(database or 0)
    sentinels = Sentinel(_addresses(hosts, 26379), sentinel_kwargs=own)  # type: ignore[no-untyped-call]
    master: Redis = sentinels.master_for(unquote(service), **settings)  # type: ignore[no-untyped-call]
    return master


def _addresses(hosts: str, default_port: int) -> list[tuple[str, int]]:
    found = [urlsplit(f"//{host}") for host in hosts.split(",")]
    if not all(each.hostname for each in found):
        raise ValueError("no host")
    return [(str(each.hostname), each.port or default_port) for each in found]


def redact(text: str, url: str) -> str:
    """`text` without the passwords that `url` holds."""
    found = re.findall(r"//[^:/]*:([^/]*)@|password=([^&#]*)", url)
    secrets = {form for pair in found for raw in pair if raw for form in (raw, unquote(raw))}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
