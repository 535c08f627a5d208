"""`Endpoint`: an address and how to connect to it, from a URL or from an existing client.

A given client remains its owner's: no connection of its pool is used or closed. Only its connection
settings are copied (address, TLS, user, credential provider, `redis_connect_func`, connection class).
Timeouts and retries are removed, because the link handles both. RESP3 is required, so that wake-ups and
replies share a connection.

Credentials must never appear in an error, whether the URL is malformed or a connection failed, and even
if the server repeats them.
"""

from __future__ import annotations

import re
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection, Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

# Settings that are not copied: they belong to the given client, or are set here.
_NOT_COPIED = re.compile("maint|orig_|oss_|retry|response_callbacks|max_connections|connection_pool")
# Redis repeats the arguments of an unknown command, and AUTH might be renamed or missing.
_ECHO = re.compile(r",? with args beginning with:.*", re.DOTALL)


class Endpoint:
    """Creates connections to one address, and removes credentials from their errors.

    Args:
        given: has the client's connection class and its arguments.
        own: arguments that replace those of the client.

    Attributes:
        host: the host name.
        name: address and database: they identify the data that is stored there.
    """

    def __init__(self, given: ConnectionPool | ClusterNode, **own: Any) -> None:
        self._class: type[AbstractConnection] = given.connection_class
        settings = given.connection_kwargs.items()
        self._kwargs = kwargs = {name: it for name, it in settings if not _NOT_COPIED.match(name)}
        kwargs.update(
            own,
            protocol=3,
            decode_responses=False,
            socket_timeout=None,
            socket_connect_timeout=None,
            health_check_interval=0,
            retry=Retry(NoBackoff(), 0),
        )
        if issubclass(self._class, Connection):  # over TCP
            kwargs["socket_keepalive"] = True
        self.host: str = kwargs.get("host", "localhost")
        address = kwargs.get("path") or f"{self.host}:{kwargs.get('port', 6379)}"
        self.name = f"{address}/{kwargs.get('db') or 0}"

    def connection(self) -> AbstractConnection:
        """A new connection outside any pool, not yet open."""
        return self._class(**self._kwargs)

    def check(self) -> None:
        """Raise ValueError if a connection cannot be created from these settings. Opens none."""
        try:
            self.connection()
            return
        except Exception as error:
            text = self.redact(error)
        # Not chained: the error itself might contain a password.
        raise ValueError(f"no connection can be made as the url or the client says: {text}")

    def redact(self, error: BaseException) -> str:
        """Format an error without credentials."""
        return self.hide(_ECHO.sub("", f"{type(error).__name__}: {error}"))

    def hide(self, text: str) -> str:
        """Replace the passwords in a text."""
        for secret in ("password", "ssl_password"):
            if self._kwargs.get(secret):
                text = text.replace(str(self._kwargs[secret]), "***")
        return text


def pool_of_url(url: object) -> ConnectionPool:
    """Parse a URL as redis-py does.

    Raises:
        TypeError, ValueError: it is no str, or malformed. No message or chained exception contains it.
    """
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, got {type(url).__name__}")  # it might hold a password
    try:
        return ConnectionPool.from_url(url)
    except ValueError:
        pass  # not chained: this message, and urllib's, might repeat a part of the password
    raise ValueError(
        "url is not one that redis-py reads (not shown: it might hold a password). Valid forms are "
        "redis://[[user]:password@]host[:port][/db], rediss://... for TLS, or unix://[user@]/path; "
        "write the characters / ? # @ % of a password in percent encoding"
    )
