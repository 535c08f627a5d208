"""The token by which a caller that was cut off takes its old place in the line.

A token only names a place: whether that place is still kept, and whether it was used before, is for the
backend to decide. The holder of the token can take the place once. A place is told from that of another
ticket with the same id, of another process for instance, by its number as well.
"""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["PlaceToken", "decode", "encode"]

_VERSION = "1"


class PlaceToken(NamedTuple):
    """What a token says."""

    queue_id: str
    kept_id: str
    """The `Ticket.id` of the call whose place it is."""
    place: float
    """The number by which the line is ordered; it is the backend's own."""


def encode(queue_id: str, kept_id: str, place: float) -> str:
    """The token of a place: letters and digits only, so that it fits into a URL or a header.

    Args:
        queue_id: any str that UTF-8 can encode.
        kept_id: the ticket's id, without a space.
        place: a finite number.
    """
    return f"{_VERSION} {place!r} {kept_id} {queue_id}".encode().hex()


def decode(token: str) -> PlaceToken:
    """What `encode` was given.

    Raises:
        ValueError: `token` does not come from `encode`.
    """
    try:
        version, number, kept_id, queue_id = bytes.fromhex(token).decode().split(" ", 3)
        place = float(number)
    except ValueError:
        raise ValueError(_MALFORMED) from None
    if version != _VERSION or not kept_id or not queue_id or not math.isfinite(place):
        raise ValueError(_MALFORMED)
    return PlaceToken(queue_id, kept_id, place)


_MALFORMED = "it is not a place token; take it from SlotRequest.place_token, unchanged"
