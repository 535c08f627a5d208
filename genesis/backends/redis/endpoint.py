"""`Endpoint`: an address and how to connect to it, from a URL or from an existing client.

A given client remains its owner's: no connection of its pool is used or closed. Only its connection
settings are copied (address, TLS, user, credential provider, `redis_connect_func`, connection class).
Timeouts and retries are replaced, because the link handles both: no read timeout and no retry by
redis-py. RESP3 is required, so that wake-ups and replies share a connection.

Credentials must never appear in an error, whether the URL is malformed or a connection failed, and even
if the server repeats them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection, Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

__all__ = ["Endpoint", "endpoint_of_pool", "pool_of_url", "settings"]

# Settings that are not copied: they belong to the given client, or are set here.
_NOT_COPIED = re.compile("maint|orig_|oss_|retry|response_callbacks|max_connections|connection_pool")
_SECRETS = ("password", "ssl_password")
# Redis repeats the arguments of an unknown command, and AUTH might be renamed or missing.
_ECHO = re.compile(r",? with args beginning with:.*", re.DOTALL)


class Endpoint:
    """Creates connections to one address, and removes credentials from their errors.

    Args:
        connection_class: redis-py's or the application's.
        kwargs: its arguments.
        secrets: further strings that must not appear in any text.
    """

    def __init__(
        self,
        connection_class: type[AbstractConnection],
        kwargs: Mapping[str, Any],
        secrets: Iterable[object] = (),
    ) -> None:
        self._class = connection_class
        self._kwargs = kwargs
        self._secrets = [
            secret
            for secret in (*secrets, *(kwargs.get(name) for name in _SECRETS))
            if isinstance(secret, str) and secret
        ]

    def connection(self) -> AbstractConnection:
        """A new connection outside any pool, not yet open."""
        return self._class(**self._kwargs)

    @property
    def name(self) -> str:
        """Address and database: they identify the data that is stored there."""
        kwargs = self._kwargs
        address = kwargs.get("path") or f"{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}"
        return f"{address}/{kwargs.get('db') or 0}"

    def check(self) -> None:
        """Raise ValueError if a connection cannot be created from these settings. Opens none."""
        try:
            self.connection()
        except Exception as error:
            text = self.redact(error)
        else:
            return
        raise ValueError(f"no connection can be made as the url or the client says: {text}")

    def redact(self, error: BaseException) -> str:
        """Format an error without credentials."""
        text = _ECHO.sub("", f"{type(error).__name__}: {error}")
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def pool_of_url(url: str) -> ConnectionPool:
    """Parse a URL as redis-py does.

    Raises:
        ValueError: it is malformed. Neither the message nor a chained exception contains the URL.
    """
    try:
        return ConnectionPool.from_url(url)
    except ValueError:
        pass  # not chained: this message, and urllib's, might repeat a part of the password
    raise ValueError(
        "url is not one that redis-py reads (not shown: it might hold a password). Valid forms are "
        "redis://[[user]:password@]host[:port][/db], rediss://... for TLS, or unix://[user@]/path; "
        "write the characters / ? # @ % of a password in percent encoding"
    )


def endpoint_of_pool(pool: ConnectionPool, timeout: float) -> Endpoint:
    """The endpoint of the pool's connections; `timeout` in seconds, for connecting."""
    kwargs = settings(pool.connection_class, pool.connection_kwargs, timeout)
    return Endpoint(pool.connection_class, kwargs)


def settings(
    connection_class: type[AbstractConnection], given: Mapping[str, Any], timeout: float
) -> dict[str, Any]:
    """The given connection settings, with the timeouts and retries that the link needs."""
    kwargs = {name: value for name, value in given.items() if not _NOT_COPIED.match(name)}
    kwargs.update(
        protocol=3,
        decode_responses=False,
        socket_timeout=None,
        socket_connect_timeout=timeout,
        health_check_interval=0,
        retry=Retry(NoBackoff(), 0),
    )
    if issubclass(connection_class, Connection):  # over TCP
        kwargs["socket_keepalive"] = True
    return kwargs
