"""The names of things in Redis: seven keys a queue under one hash tag, one channel an instance."""

from __future__ import annotations

KINDS = ("meta", "waiting", "holding", "tickets", "leases", "past", "override")

__all__ = ["MAX_PREFIX_BYTES", "channel_prefix", "check_key_prefix", "queue_keys"]

MAX_PREFIX_BYTES = 1024


def queue_keys(key_prefix: str, queue_id: str) -> tuple[bytes, ...]:
    """KEYS of every script, in the order that `library.lua` names.

    Redis Cluster hashes what stands between the first `{` and the next `}`. Braces in the id are
    escaped, so that any id gives one tag, never an empty or a shared one; `%` is, so that no two
    ids give the same key.
    """
    tag = queue_id.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    base = f"{key_prefix}{{{tag}}}:"
    return tuple((base + kind).encode() for kind in KINDS)


def channel_prefix(key_prefix: str) -> bytes:
    """What stands before an instance's id in the name of its wake-up channel."""
    return f"{key_prefix}wake:".encode()


def check_key_prefix(key_prefix: object) -> None:
    """Raise unless it is text in front of which a hash tag stays one."""
    if not isinstance(key_prefix, str):
        raise TypeError(f"key_prefix must be a str, got {type(key_prefix).__name__}")
    if "{" in key_prefix or "}" in key_prefix:
        raise ValueError(
            f"key_prefix {key_prefix!r:.100} has a brace: Redis Cluster would take its text, not the "
            "queue's, for the hash tag. Leave the braces out"
        )
    try:
        size = len(key_prefix.encode())
    except UnicodeEncodeError as error:
        raise ValueError(
            f"key_prefix {key_prefix!r:.100} is not encodable as UTF-8 ({error.reason})"
        ) from None
    if size > MAX_PREFIX_BYTES:
        raise ValueError(f"key_prefix has {size} bytes; at most {MAX_PREFIX_BYTES} are allowed")
