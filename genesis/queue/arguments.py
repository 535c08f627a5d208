"""Bad arguments are refused at once, before anything is enqueued."""

from __future__ import annotations

import math

from genesis.backends.places import decode

__all__ = [
    "MAX_ID_BYTES",
    "MAX_SECONDS",
    "check_id",
    "check_limit",
    "check_pace",
    "check_place_token",
    "check_seconds",
    "check_timeout",
]

MAX_ID_BYTES = 16_384
MAX_SECONDS = 86_400
"""Of a head start and of the time for which a place is kept: a day."""

MAX_SLOTS = 2**63 - 1


def check_id(name: str, value: object) -> str:
    """`value` as plain text; raise unless it is a non-empty str of at most `MAX_ID_BYTES` of UTF-8.

    A str subclass counts as the text that it holds, whatever its `str()` and `format()` make of it.
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


def check_timeout(name: str, value: object) -> float | None:
    """Raise unless `value` is None or a number of seconds, 0 or more; infinity is None.

    Args:
        name: how messages begin, for example "queue 'sales': timeout".
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be seconds or None, got {type(value).__name__}: {value!r}")
    seconds = _seconds(name, value)
    return None if seconds == math.inf else seconds


def check_seconds(name: str, value: object, most: float = MAX_SECONDS) -> float:
    """Raise unless `value` is a number of seconds from 0 to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be seconds, got {type(value).__name__}: {value!r}")
    seconds = _seconds(name, value)
    if seconds > most:
        raise ValueError(f"{name} must be at most {most:,} seconds, got {value}")
    return seconds


def check_place_token(queue_id: str, value: object) -> str:
    """Raise unless `value` is a token of a place in this queue."""
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


def check_pace(queue_id: str, every: object, at_least: object) -> tuple[float, float]:
    """Raise unless these are seconds, and `every` is not 0."""
    often = check_seconds(f"queue {queue_id!r}: every", every, math.inf)
    seldom = check_seconds(f"queue {queue_id!r}: at_least", at_least, math.inf)
    if often == 0:
        raise ValueError(f"queue {queue_id!r}: every must be more than 0 seconds")
    return often, seldom


def _seconds(name: str, value: float) -> float:
    try:
        seconds = float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large for a clock") from None
    if not seconds >= 0:  # NaN is not
        raise ValueError(f"{name} must be 0 or more seconds, got {value}")
    return seconds
