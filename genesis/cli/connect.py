"""From a url to a client for a server, for a master behind Sentinels, or for a Cluster."""

from __future__ import annotations

from typing import Any, TypeAlias
from urllib.parse import ParseResult, parse_qsl, unquote, urlparse

from redis import Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.connection import ConnectionPool
from redis.retry import Retry
from redis.sentinel import Sentinel

__all__ = ["Client", "UrlError", "connect", "secrets_of"]

Client: TypeAlias = "Redis | RedisCluster"

FORMS = (
    "redis://[[user]:password@]host[:port][/db], rediss://... for TLS, unix://[user@]/path, "
    "redis+sentinel://[[user]:password@]host:port,host:port/service[/db][?sentinel_password=...], "
    "or redis+cluster://[[user]:password@]host:port,host:port; rediss+... for TLS"
)


class UrlError(ValueError):
    """The url is malformed. The message does not repeat the url, which might hold a password."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the url cannot be used: {why}. Forms: {FORMS}")


def connect(url: str, timeout: float) -> Client:
    """A client for `url`. A Cluster client connects at once, any other with its first command.

    Args:
        url: see `FORMS`; options after `?` go to redis-py, for example `ssl_ca_certs=/path`.
        timeout: seconds, for connecting and for each reply.

    Raises:
        UrlError: the url is malformed.
        redis.RedisError: the Cluster cannot be reached.
    """
    try:
        parts = urlparse(url)
        scheme = parts.scheme
        _ = parts.username, parts.password
    except ValueError:
        raise UrlError("it has no form that can be read") from None
    settings: dict[str, Any] = {
        "protocol": 2,  # redis-py's replies to RESP3 depend on its version
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
    }
    if scheme in ("redis", "rediss", "unix"):
        try:
            pool = ConnectionPool.from_url(url, retry=Retry(NoBackoff(), 0), **settings)
        except (ValueError, TypeError):
            raise UrlError("redis-py does not read it") from None
        return Redis(connection_pool=pool)
    transport, _, kind = scheme.partition("+")
    if transport not in ("redis", "rediss") or kind not in ("sentinel", "cluster"):
        raise UrlError(f"the scheme {scheme!r} is unknown")
    options = dict(parse_qsl(parts.query))
    if transport == "rediss":
        settings["ssl"] = True
    if parts.username:
        settings["username"] = unquote(parts.username)
    if parts.password:
        settings["password"] = unquote(parts.password)
    if kind == "cluster":
        nodes = [_node(host, port) for host, port in _hosts(parts, 6379)]
        return RedisCluster(startup_nodes=nodes, **{**settings, **options})
    return _master(parts, {**settings, "retry": Retry(NoBackoff(), 0)}, options)


def _master(parts: ParseResult, settings: dict[str, Any], options: dict[str, str]) -> Redis:
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise UrlError("the name of the service is missing, after the Sentinels' addresses")
    if database and not database.isdecimal():
        raise UrlError("the database, after the service, is no number")
    own = {name: settings[name] for name in ("socket_timeout", "socket_connect_timeout")}
    for name in [name for name in options if name.startswith("sentinel_")]:
        own[name.removeprefix("sentinel_")] = options.pop(name)
    if settings.get("ssl"):
        own["ssl"] = True
        own.update({name: text for name, text in options.items() if name.startswith("ssl_")})
    sentinels = Sentinel(_hosts(parts, 26379), sentinel_kwargs=own)  # type: ignore[no-untyped-call]
    settings = {**settings, **options, "db": int(database or 0)}
    master: Redis = sentinels.master_for(unquote(service), **settings)  # type: ignore[no-untyped-call]
    return master


def _node(host: str, port: int) -> ClusterNode:
    return ClusterNode(host, port)  # type: ignore[no-untyped-call]


def _hosts(parts: ParseResult, default_port: int) -> list[tuple[str, int]]:
    hosts: list[tuple[str, int]] = []
    for text in parts.netloc.rpartition("@")[2].split(","):
        host, colon, port = text.rpartition(":")
        if text.endswith("]") or not colon:  # an IPv6 address, or no port
            host, port = text, str(default_port)
        if not host or not port.isdecimal():
            raise UrlError("a host:port is malformed")
        hosts.append((host.strip("[]"), int(port)))
    return hosts


def secrets_of(url: str) -> list[str]:
    """The passwords in a url, which must not appear in any text; longest first."""
    try:
        parts = urlparse(url)
        found = [parts.password or "", unquote(parts.password or "")]
    except ValueError:
        return [url]
    options = dict(parse_qsl(parts.query))
    found += [options.get(name, "") for name in ("password", "sentinel_password", "ssl_password")]
    return sorted({secret for secret in found if secret}, key=len, reverse=True)
