"""Tables, bars and durations as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from genesis.backends.protocol import QueueEntry
from genesis.cli.store import Instance, QueueLook

__all__ = ["bar", "clean", "entries_table", "instances_table", "queues_table", "span", "table"]


def clean(text: str, most: int = 48) -> str:
    """An id that is safe to print: without control characters, and of at most `most` characters."""
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def span(seconds: float | None) -> str:
    """`0.4s`, `12s`, `3m20s`, `2h05m`, `3d04h`; `-` for None."""
    if seconds is None:
        return "-"
    if seconds < 0:
        return "-" + span(-seconds)
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02}h"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """The lines of a table. The first `left` columns are aligned left, all others right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def limit_of(look: QueueLook) -> str:
    if look.limit == 0:
        return "paused"
    return f"{look.limit}*" if look.override is not None else str(look.limit)


def queues_table(looks: Sequence[QueueLook]) -> list[str]:
    head = (
        "QUEUE", "WAITING", "IN USE", "LIMIT", "OLDEST WAIT", "OLDEST HOLD", "EXPECTED", "INSTANCES",
    )  # fmt: skip
    rows = [
        (
            clean(look.queue_id),
            str(look.waiting),
            str(look.in_use),
            limit_of(look),
            span(look.oldest_wait if look.waiting else None),
            span(look.oldest_hold if look.in_use else None),
            span(look.expected_wait),
            str(look.instances),
        )
        for look in looks
    ]
    lines = table(head, rows)
    if any(look.override is not None for look in looks):
        lines.append("* overridden by set_limit; `genesis limit QUEUE none` ends it")
    return lines


def instances_table(instances: Sequence[Instance]) -> list[str]:
    head = ("INSTANCE", "HOST", "VERSION", "PID", "LEASE", "UP FOR", "LAST SEEN")
    rows = [
        (
            clean(each.instance_id),
            clean(each.host, 30),
            clean(each.version, 20),
            str(each.pid),
            span(each.lease),
            span(each.age),
            f"{span(each.seen)} ago" + ("" if each.alive else " (STALE)"),
        )
        for each in instances
    ]
    return table(head, rows, left=3)


def entries_table(entries: Sequence[QueueEntry]) -> list[str]:
    head = ("STATE", "ITEM", "INSTANCE", "POSITION", "AGE", "FENCING TOKEN")
    rows = [
        (
            entry.state,
            clean(entry.item_id),
            clean(entry.instance_id),
            str(entry.position or "-"),
            span(entry.age),
            str(entry.fencing_token or "-"),
        )
        for entry in entries
    ]
    return table(head, rows, left=3)


def bar(look: QueueLook, width: int) -> str:
    """Slots in use as `#`, free slots as `.`, then waiters as `>`, scaled to `width` characters."""
    slots = max(look.limit, look.in_use, 1)
    room = max(4, width * 2 // 3)
    per_cell = max(1.0, slots / room)
    size = round(slots / per_cell)
    used = min(size, -(-look.in_use * size // slots))
    queue = max(0, width - size - 2)
    waiting = look.waiting if look.waiting <= queue else queue
    tail = ">" * waiting
    if look.waiting > queue > 0:
        tail = ">" * (queue - 1) + "+"
    return f"[{'#' * used}{'.' * (size - used)}]{tail}"
