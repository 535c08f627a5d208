"""Place tokens: with one, a caller that was disconnected can take its old place in the line again.

A token only names a place. The backend decides whether the place is still kept and whether the token
was used before; a place can be taken once. The token holds the ticket id and the place's number,
because a ticket of another process might have the same id.
"""

from __future__ import annotations

import math
from typing import NamedTuple

_VERSION = "1"


class PlaceToken(NamedTuple):
    """The content of a token."""

    queue_id: str
    kept_id: str
    """The `Ticket.id` of the call that left the place."""
    place: float
    """The number that orders the line; its unit is the backend's."""


def encode(queue_id: str, kept_id: str, place: float) -> str:
    """The token of a place: letters and digits only, safe in a URL or a header.

    Args:
        queue_id: any str that UTF-8 can encode.
        kept_id: the ticket's id, without a space.
        place: a finite number.
    """
    return f"{_VERSION} {place!r} {kept_id} {queue_id}".encode().hex()


def decode(token: str) -> PlaceToken:
    """The inverse of `encode`.

    Raises:
        ValueError: `token` was not made by `encode`.
    """
    try:
        version, place, kept_id, queue_id = bytes.fromhex(token).decode().split(" ", 3)
        if version == _VERSION and kept_id and queue_id and math.isfinite(float(place)):
            return PlaceToken(queue_id, kept_id, float(place))
    except ValueError:
        pass
    raise ValueError("it is not a place token; take it from SlotRequest.place_token, unchanged")
