"""The names of things in Redis: four keys a queue under one hash tag, one channel an instance."""

from __future__ import annotations

__all__ = ["channel_prefix", "queue_keys"]


def queue_keys(key_prefix: str, queue_id: str) -> tuple[bytes, ...]:
    """KEYS of every script, in the order that `line.lua` names.

    Redis Cluster hashes what stands between the first `{` and the next `}`. Braces in the id are
    escaped, so that any id gives one tag, never an empty or a shared one; `%` is, so that no two
    ids give the same key.
    """
    tag = queue_id.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    base = f"{key_prefix}{{{tag}}}:".encode()
    return base + b"meta", base + b"waiting", base + b"holding", base + b"leases"


def channel_prefix(key_prefix: str) -> bytes:
    """What stands before an instance's id in the name of its wake-up channel."""
    return f"{key_prefix}wake:".encode()
