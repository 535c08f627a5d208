"""Planted bugs, in the worker processes only, to check that the campaign finds them.

Each changes a Lua script before it is loaded into Redis, or a method of the core. A text that is not
found is an error: otherwise a plant without effect would look like a bug that the campaign misses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from genesis.backends.redis import core, scripts
from genesis.backends.redis.ticket import LocalTicket, Stage

__all__ = ["PLANTS", "plant"]


def plant(name: str) -> None:
    """Plant this bug in the process, before it creates a backend."""
    PLANTS[name]()


def _drop_leave() -> None:
    """A waiter that gives up is dropped without a command: its place stays in the line."""
    honest = core.QueueCore.leave

    def leave(self: core.QueueCore, ticket: LocalTicket, *rest: Any) -> None:
        if ticket.stage is Stage.WAITING and ticket.wanted:
            ticket.wanted = False
            ticket.left = self.session
        else:
            honest(self, ticket, *rest)

    core.QueueCore.leave = leave  # type: ignore[method-assign, assignment]


def _sync_lists_nothing() -> None:
    """After a reconnect, Redis removes the tickets that the instance still has."""
    LocalTicket.listed = property(lambda ticket: ticket.stage is Stage.ENTERING)  # type: ignore[assignment]


def _change(*changes: tuple[str, str, str]) -> Callable[[], None]:
    """Each change: a script, or `library` for all that include it; the old text, which must occur
    once; the new text."""

    def change() -> None:
        honest = scripts.source_of

        def source_of(name: str) -> str:
            source = honest(name)
            for script, old, new in changes:
                if name == script or (script == "library" and "local function grant" in source):
                    if source.count(old) != 1:
                        raise LookupError(f"{name}.lua has {source.count(old)} times: {old!r}")
                    source = source.replace(old, new)
            return source

        scripts.source_of = source_of
        scripts.load.cache_clear()

    return change


_PUSH = "push(owner, 'g', row[1], ' ' .. string.format('%.0f', row[2]) .. ' ' .. (freed[i] or ''))\n"
_PUSH_AT_ONCE = "      redis.pcall('PUBLISH', ARGV[4] .. owner, text)\n"
_HOLD = "      redis.call('ZADD', HOLDING, number, head)\n"
_HOLD_AT_ONCE = "    redis.call('ZADD', KEYS[3], number, head)\n"
_HEAD = "local head = redis.call('ZRANGE', WAITING, 0, 0)[1]"
_HEAD_AT_ONCE = "redis.call('ZRANGE', KEYS[2], 0, 0)[1]"
_TOMBSTONE = "  redis.call('ZADD', PAST, NOW + RECORD, 't ' .. ticket_of(member))\n"
_RENEW = "redis.call('ZADD', LEASES, NOW + lease, instance)\n"
_CHECK = "if meta[1] ~= ARGV[2] then\n"
_USED = (
    "  redis.call('ZADD', PAST, math.max(expiry, NOW + RECORD), 'u ' .. string.match(kept, '^%S+'))\n"
    "  redis.call('ZREM', PAST, name)\n"
)
_FULL = "waiters >= tonumber(most)"
_STANDS = "    redis.call('ZADD', WAITING, number, member)\n"

PLANTS: dict[str, Callable[[], None]] = {
    "drop-leave": _drop_leave,
    "sync-lists-nothing": _sync_lists_nothing,
    # The heartbeat gets its reply, but renews no lease.
    "skip-renewal": _change(("beat", _RENEW, "")),
    # The slot is recorded, but its call learns of it only with the next heartbeat.
    "lose-grant": _change(("library", _PUSH, ""), ("leave", _PUSH_AT_ONCE, "")),
    # The waiter is woken, but its slot is recorded only with the next heartbeat.
    "hold-nothing": _change(("library", _HOLD, ""), ("leave", _HOLD_AT_ONCE, "")),
    "last-comes-first": _change(
        ("library", _HEAD, _HEAD.replace("0, 0", "-1, -1")),
        ("leave", _HEAD_AT_ONCE, _HEAD_AT_ONCE.replace("0, 0", "-1, -1")),
    ),
    # An evicted ticket is registered again if its instance has missed the message.
    "no-tombstone": _change(("evict", _TOMBSTONE, "")),
    "no-window": _change(("library", "  if NOW >= window + lease / 2 then\n", "  if false then\n")),
    # A late `enter` of a lost connection creates a holder without a call.
    "no-session-check": _change(("enter", _CHECK, "if false then\n")),
    "keep-used-place": _change(("library", _USED, "")),
    "let-one-in": _change(("library", _FULL, "waiters > tonumber(most)")),
    "forget-head-start": _change(
        ("sync", _STANDS, _STANDS.replace("number,", "number + head_start_of(member),"))
    ),
}
