"""How tickets and numbers are written in Redis.

A ticket is a member of a sorted set: `<instance>:<serial> <head start (us)> <context> <item_id>`. Only
the item_id might contain spaces, so it comes last. Serials have a fixed width: an instance's members
sort in the order of entering, and its tickets form a range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from genesis.backends.estimate import FEWEST_HOLDS
from genesis.backends.protocol import CallRef, QueueStats


def make_member(instance: str, serial: int, head_start: float, context: str, item_id: str) -> bytes:
    """Args: head_start in seconds; context is a `traceparent` or ''."""
    return f"{instance}:{serial:010x} {round(head_start * 1e6)} {context} {item_id}".encode()


def ticket_of(member: bytes) -> bytes:
    """`<instance>:<serial>`"""
    return member[: member.index(b" ")]


def parse_member(member: bytes) -> CallRef:
    ticket, _, context, item_id = member.decode().split(" ", 3)
    return CallRef(item_id, ticket.rpartition(":")[0], context)


def mean_hold_of(holds: int, mean: int) -> float | None:
    """The mean hold in seconds, None while it is unknown. Args: holds in the mean; their mean (us)."""
    return mean / 1e6 if holds >= FEWEST_HOLDS else None


def stats_of(numbers: Sequence[Any]) -> QueueStats:
    """Convert the reply of `numbers` in library.lua."""
    waiting, in_use, limit, oldest_wait, oldest_hold, *holds = numbers
    return QueueStats(
        waiting, in_use, int(limit), oldest_wait / 1e6, oldest_hold / 1e6, mean_hold_of(*holds)
    )
