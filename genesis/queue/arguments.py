"""Bad arguments are refused at once, before anything is enqueued."""

from __future__ import annotations

import math

__all__ = ["MAX_ID_BYTES", "check_id", "check_limit", "check_timeout"]

MAX_ID_BYTES = 16_384
MAX_SLOTS = 2**63 - 1


def check_id(name: str, value: object) -> None:
    """Raise unless `value` is a non-empty str of at most `MAX_ID_BYTES` of UTF-8."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}: {value!r:.100}")
    if not value:
        raise ValueError(f"{name} must not be empty")
    if value.isascii() and len(value) <= MAX_ID_BYTES:
        return
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} {value!r:.100} is not encodable as UTF-8 ({error.reason}); "
            "decode it with errors='replace' first"
        ) from None
    if size > MAX_ID_BYTES:
        raise ValueError(
            f"{name} {value!r:.40}... has {size} bytes; at most {MAX_ID_BYTES} are allowed"
        )


def check_limit(name: str, queue_id: str, value: object, least: int) -> None:
    """Raise unless `value` is None or an int of at least `least`."""
    if value is None or (type(value) is int and least <= value <= MAX_SLOTS):
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"queue {queue_id!r}: {name} must be an int or None, got {type(value).__name__}: {value!r}"
        )
    if value > MAX_SLOTS:
        raise ValueError(f"queue {queue_id!r}: {name} must be below 2**63")
    if value < least:
        raise ValueError(f"queue {queue_id!r}: {name} must be at least {least}, got {value}")


def check_timeout(queue_id: str, value: object) -> float | None:
    """Raise unless `value` is None or a number of seconds, 0 or more; infinity is None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"queue {queue_id!r}: timeout must be seconds or None, "
            f"got {type(value).__name__}: {value!r}"
        )
    try:
        seconds = float(value)
    except OverflowError:
        raise ValueError(f"queue {queue_id!r}: timeout is too large for a clock") from None
    if not seconds >= 0:  # NaN is not
        raise ValueError(f"queue {queue_id!r}: timeout must be 0 or more seconds, got {value}")
    return None if seconds == math.inf else seconds
