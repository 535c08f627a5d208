"""The form of a ticket in Redis: `<instance>:<serial> <head start (us)> <context> <item_id>`.

Only the item_id might contain spaces, so it comes last. Serials have a fixed width: an instance's
members sort in the order of entering, and its tickets form a range.
"""

from __future__ import annotations

from genesis.backends.protocol import CallRef

__all__ = ["age_of", "make_member", "make_origin", "parse_member", "parse_origin", "ticket_of"]


def make_member(instance: str, serial: int, head_start: float, context: str, item_id: str) -> bytes:
    """Args: head_start in seconds; context is a `traceparent` or ''."""
    return f"{instance}:{serial:010x} {round(head_start * 1e6)} {context} {item_id}".encode()


def make_origin(instance: str, context: str, item_id: str) -> bytes:
    """The description of a leaving call for the call that gets its slot."""
    return f"{instance} {context} {item_id}".encode()


def ticket_of(member: bytes) -> bytes:
    """`<instance>:<serial>`"""
    return member[: member.index(b" ")]


def age_of(member: bytes, place: int, now: int, resumed: dict[bytes, int]) -> float:
    """Seconds that a waiter has waited.

    Args:
        member: the waiter.
        place: its number in the line (us).
        now: Redis's time (us).
        resumed: by ticket, when it entered (us): for tickets that took a kept place, because that
            place is older than their entry.
    """
    entered = resumed.get(ticket_of(member)) or place + int(member.split(b" ", 2)[1])
    return max(0, now - entered) / 1e6


def parse_member(member: bytes) -> CallRef:
    ticket, _, context, item_id = member.decode().split(" ", 3)
    return CallRef(item_id, ticket.rpartition(":")[0], context)


def parse_origin(origin: bytes) -> CallRef | None:
    """None if the slot was free."""
    if not origin:
        return None
    instance, context, item_id = origin.decode().split(" ", 2)
    return CallRef(item_id, instance, context)
