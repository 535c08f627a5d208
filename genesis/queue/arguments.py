"""Argument checks. They run before anything is enqueued."""

from __future__ import annotations

import math

from genesis.backends.places import decode

MAX_ID_BYTES = 16_384
MAX_SECONDS = 86_400
"""The maximum of `head_start` and of `keep_place`: one day."""

MAX_SLOTS = 2**63 - 1


def check_id(name: str, value: object) -> str:
    """Return `value` as plain text.

    A str subclass becomes the text it holds; its own `__str__` and `__format__` are not called.

    Raises:
        TypeError: `value` is not a str.
        ValueError: `value` is empty, cannot be encoded as UTF-8, or exceeds `MAX_ID_BYTES` in UTF-8.
    """
    if type(value) is not str:
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a str, got {type(value).__name__}: {value!r:.100}")
        value = str.__str__(value)
    if not value:
        raise ValueError(f"{name} must not be empty")
    if value.isascii() and len(value) <= MAX_ID_BYTES:
        return value
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
    return value


def check_limit(name: str, queue_id: str, value: object, least: int) -> None:
    """Raise TypeError or ValueError unless `value` is None or an int from `least` to 2**63 - 1."""
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


def check_timeout(name: str, value: object) -> float | None:
    """Return seconds as a float, or None for None and infinity; raise unless `value` is 0 or more.

    Args:
        name: the beginning of the error message, for example "queue 'sales': timeout".
        value: seconds, or None.
    """
    if value is None:
        return None
    seconds = check_seconds(name, value, math.inf)
    return None if seconds == math.inf else seconds


def check_seconds(name: str, value: object, most: float = MAX_SECONDS) -> float:
    """Return seconds as a float; raise unless `value` is a number from 0 to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, got {type(value).__name__}: {value!r}")
    try:
        seconds = float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large for a clock") from None
    if not seconds >= 0:  # also rejects NaN
        raise ValueError(f"{name} must be 0 or more seconds, got {value}")
    if seconds > most:
        raise ValueError(f"{name} must be at most {most:,} seconds, got {value}")
    return seconds


def check_place_token(queue_id: str, value: object) -> str:
    """Return the token as plain text; raise unless it is a place token of this queue."""
    if not isinstance(value, str):
        raise TypeError(
            f"queue {queue_id!r}: place_token must be a str or None, "
            f"got {type(value).__name__}: {value!r:.100}"
        )
    token = str.__str__(value)
    try:
        other = decode(token).queue_id
    except ValueError as error:
        raise ValueError(f"queue {queue_id!r}: place_token {token!r:.60}: {error}") from None
    if other != queue_id:
        raise ValueError(
            f"queue {queue_id!r}: place_token is of queue {other!r}; a place is taken in its own queue"
        )
    return token
