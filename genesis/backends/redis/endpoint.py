"""Where connections are made to, and of which kind: from a URL, or like a ready client's own.

A client that is given stays its owner's: nothing is taken from its pool, nothing closed. Only how it
connects (address, TLS, user, credential provider, `redis_connect_func`, connection class) is taken
from it. How long to wait is settled here, because only the link can know that: no timeout on reading,
no retry of redis-py's. RESP3, so that wake-ups and replies share a connection.

What a connection authenticates itself with never shows: not in an error about a bad URL, nor in what
is told of a connection that failed, even if the server repeats it.
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

# What belongs to the client that was given, or is settled here.
_THEIRS = re.compile("maint|orig_|oss_|retry|response_callbacks|max_connections|connection_pool")
_SECRETS = ("password", "ssl_password")
# A Redis that does not know a command repeats its arguments; AUTH may be renamed or not exist.
_ECHO = re.compile(r",? with args beginning with:.*", re.DOTALL)


class Endpoint:
    """Makes connections to one place, and tells of their errors without their credentials.

    Args:
        connection_class: redis-py's or a user's.
        kwargs: what it is made with.
        secrets: more that no text may show.
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
        """A connection that nobody else counts or closes."""
        return self._class(**self._kwargs)

    @property
    def name(self) -> str:
        """Which data is there: address and database."""
        kwargs = self._kwargs
        address = kwargs.get("path") or f"{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}"
        return f"{address}/{kwargs.get('db') or 0}"

    def check(self) -> None:
        """Raise unless connections of this kind can be made; none is opened."""
        try:
            self.connection()
        except Exception as error:
            text = self.tell(error)
        else:
            return
        raise ValueError(f"no connection can be made as the url or the client says: {text}")

    def tell(self, error: BaseException) -> str:
        """An error in words that may be shown to anybody."""
        text = _ECHO.sub("", f"{type(error).__name__}: {error}")
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def pool_of_url(url: str) -> ConnectionPool:
    """Read a URL as redis-py does.

    Raises:
        ValueError: it is malformed. The URL is not in the text, nor in an exception behind it.
    """
    try:
        return ConnectionPool.from_url(url)
    except ValueError:
        pass  # its text, and urllib's, may repeat a part of the password
    raise ValueError(
        "url is not one that redis-py reads (it is not shown: it may bear a password). One looks like "
        "redis://[[user]:password@]host[:port][/db], rediss://... for TLS, or unix://[user@]/path; "
        "write the characters / ? # @ % of a password in percent encoding"
    )


def endpoint_of_pool(pool: ConnectionPool, timeout: float) -> Endpoint:
    """The place to which the connections of `pool` lead, with settings of our own."""
    kwargs = settings(pool.connection_class, pool.connection_kwargs, timeout)
    return Endpoint(pool.connection_class, kwargs)


def settings(
    connection_class: type[AbstractConnection], given: Mapping[str, Any], timeout: float
) -> dict[str, Any]:
    """How to connect, as given; how to wait, as the link needs it."""
    kwargs = {name: value for name, value in given.items() if not _THEIRS.match(name)}
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
