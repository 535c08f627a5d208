"""Names in Redis: seven keys per queue under one hash tag, and one channel per instance."""

from __future__ import annotations

KINDS = ("meta", "waiting", "holding", "tickets", "leases", "past", "override")

MAX_PREFIX_BYTES = 1024


def queue_keys(key_prefix: str, queue_id: str) -> tuple[bytes, ...]:
    """The KEYS of every script, in the order given in `library.lua`.

    Redis Cluster hashes the text between the first `{` and the next `}`. Braces in the id are escaped:
    each id must give one non-empty tag of its own. `%` is escaped too: two ids must not give one key.
    """
    tag = queue_id.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    base = f"{key_prefix}{{{tag}}}:"
    return tuple((base + kind).encode() for kind in KINDS)


def channel_prefix(key_prefix: str) -> bytes:
    """The prefix of the wake-up channels; an instance's id follows it."""
    return f"{key_prefix}wake:".encode()


def check_key_prefix(key_prefix: object) -> None:
    """Raise unless `key_prefix` is text that can precede a hash tag.

    Raises:
        TypeError: it is not a str.
        ValueError: it has braces, cannot be encoded as UTF-8, or exceeds `MAX_PREFIX_BYTES`.
    """
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
