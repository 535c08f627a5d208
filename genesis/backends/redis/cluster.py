"""Which link serves a queue: the only one, or that of the slot's master in a Redis Cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from genesis.backends.redis.endpoint import Endpoint
from genesis.backends.redis.link import Link
from genesis.backends.redis.scripts import Script

__all__ = ["Router", "RouterSettings", "SingleRouter"]


class RouterSettings(NamedTuple):
    """What every router is made with; see `Link` for all but `on_moved`."""

    channel: bytes
    scripts: Sequence[Script]
    timeout: float
    probe_interval: float
    on_up: Callable[[Link], None]
    on_down: Callable[[Link, str, str, bool], None]
    on_push: Callable[[Link, list[Any]], None]
    on_moved: Callable[[], None] = lambda: None
    """The map of slots changed: `Router.link` may answer otherwise for any queue."""

    def link(self, endpoint: Endpoint) -> Link:
        return Link(endpoint, *self[:7])


class Router(Protocol):
    """Belongs to the event loop that runs when it is made."""

    def link(self, key: bytes) -> Link | None:
        """The link to the server that serves `key`, up or not; None while none is known."""

    def redirected(self, key: bytes, error: BaseException) -> bool:
        """Whether `error` rejected a command on `key` because another server serves it, or none yet.

        If so, the router looks for the right one; send to `link(key)` anew after a small delay.
        """

    def why_down(self, key: bytes) -> str:
        """Why no command on `key` can be sent; "" if it can."""

    def denied(self, key: bytes) -> bool:
        """See `Link`."""

    def links(self) -> Iterable[Link]: ...

    def abort(self) -> None:
        """Close all links without waiting for anything."""

    async def close(self, timeout: float) -> None:
        """Close all links; `timeout` seconds at most."""


class SingleRouter:
    """One server serves all."""

    def __init__(self, endpoint: Endpoint, settings: RouterSettings) -> None:
        self._link = settings.link(endpoint)

    def link(self, key: bytes) -> Link | None:  # noqa: ARG002
        return self._link

    def redirected(self, key: bytes, error: BaseException) -> bool:  # noqa: ARG002
        return False

    def why_down(self, key: bytes) -> str:  # noqa: ARG002
        return self._link.why_down

    def denied(self, key: bytes) -> bool:  # noqa: ARG002
        return self._link.denied

    def links(self) -> Iterable[Link]:
        return (self._link,)

    def abort(self) -> None:
        self._link.close()

    async def close(self, timeout: float) -> None:
        self._link.close()
        await self._link.wait_closed(timeout)
