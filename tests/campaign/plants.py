"""Bugs put in on purpose, in the worker processes alone, to see that the campaign finds them.

Each changes a Lua script on its way from its file to Redis, or a method of the client. A text that is
no longer found is an error: a plant that plants nothing would be reported as found by nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache

from genesis.backends.protocol import LeaveResult, Ticket
from genesis.backends.redis import backend, heartbeat, link
from genesis.backends.redis.ledger import Stage
from genesis.backends.redis.scripts import Script, load

__all__ = ["PLANTS", "plant"]


_WRITTEN_DOWN = """\
      if redis.call('ZADD', HOLDING, text(number), ticket) == 1 and free == limit then
        redis.call('EXPIRE', HOLDING, ttl)
      end
"""
_REMEMBERED = """\
  redis.call('SET', BASE .. 'left:' .. ARGV[1], '1', 'EX', math.max(ttl, tonumber(ARGV[5])))
"""


def plant(name: str) -> None:
    """Put the bug of that name into this process, before it makes a backend."""
    PLANTS[name]()


def _skip_renewal() -> None:
    """The heartbeat is answered, but renews no lease."""
    _change_scripts(
        ("heartbeat", "  redis.call('ZADD', LEASES, text(NOW + lease), instance)\n", "", 1),
    )


def _drop_handoff() -> None:
    """Who gives up waiting is forgotten here, but nothing is said: what it had is not handed on."""
    honest = backend.RedisBackend.leave

    async def leave(self: backend.RedisBackend, ticket: Ticket, context: str = "") -> LeaveResult:
        session = self._session
        passage = session.ledger.find(ticket.id) if session is not None else None
        if session is not None and passage is not None and passage.stage is Stage.WAITING:
            session.ledger.remove(passage)
            return LeaveResult(None)
        return await honest(self, ticket, context)

    backend.RedisBackend.leave = leave  # type: ignore[method-assign]


def _publish_first() -> None:
    """The waiter is woken before its slot is written down: that comes with its next heartbeat."""
    _change_scripts(
        ("", _WRITTEN_DOWN, "", 1),
    )


def _forget_left() -> None:
    """A stray copy of an enter that comes after its ticket's leave makes a holder that nobody is."""
    _change_scripts(
        ("leave", _REMEMBERED, "", 1),
    )


PLANTS: dict[str, Callable[[], None]] = {
    "forget-left": _forget_left,
    "skip-renewal": _skip_renewal,
    "drop-handoff": _drop_handoff,
    "publish-first": _publish_first,
}


def _change_scripts(*changes: tuple[str, str, str, int]) -> None:
    """Each change: the script, '' for all of them; the old text; the new one; how often it is there."""

    @cache
    def changed(name: str) -> Script:
        source = load(name).source.decode()
        for script, old, new, times in changes:
            if script in ("", name):
                found = source.count(old)
                if found != times:
                    raise LookupError(f"{name}.lua has {found} times, not {times}: {old!r}")
                source = source.replace(old, new)
        raw = source.encode()
        return Script(name, raw, hashlib.sha1(raw).hexdigest().encode())

    for module in (backend, heartbeat, link):
        module.load = changed  # type: ignore[attr-defined]
