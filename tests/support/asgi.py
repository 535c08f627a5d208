"""A minimal ASGI server in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["Reply", "request"]


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def request(
    app: Any,
    path: str,
    method: str = "GET",
    *,
    query: str = "",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    gone: asyncio.Event | None = None,
    cut: bool = False,
    **scope: Any,
) -> Reply:
    """Send one request. The client disconnects when `gone` is set, or, if `cut`, within its body.
    `scope` overrides the defaults."""
    sent: list[Any] = []
    leaving = gone or asyncio.Event()
    incoming = [{"type": "http.request", "body": body, "more_body": False}]
    if cut:
        incoming = [
            {"type": "http.disconnect"},
            {"type": "http.request", "body": body, "more_body": True},
        ]

    async def receive() -> Any:
        if incoming:
            return incoming.pop()
        await leaving.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    given = {
        "type": "http",
        "method": method,
        "path": path,
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
    }
    await app({**given, **scope}, receive, send)
    start, *rest = sent
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return Reply(start["status"], found, b"".join(each["body"] for each in rest))
