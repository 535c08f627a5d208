"""A minimal HTTP client."""

from __future__ import annotations

import asyncio
import http.client
from typing import Any

from tests.support.asgi import Reply

__all__ = ["aask", "ask"]


def ask(port: int, path: str, method: str = "GET", headers: Any = None) -> Reply:
    """Send one request on a new connection. Blocks."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers=headers or {})
        return read_reply(connection)
    finally:
        connection.close()


def read_reply(connection: http.client.HTTPConnection) -> Reply:
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Reply(response.status, headers, response.read())


async def aask(*arguments: Any, **options: Any) -> Reply:
    return await asyncio.to_thread(ask, *arguments, **options)
