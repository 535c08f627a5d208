"""Tables and durations as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from genesis.backends.protocol import QueueEntry
from genesis.cli.store import Instance, QueueLook

__all__ = ["clean", "entries_table", "instances_table", "queue_cells", "queues_table", "span", "table"]


def clean(text: str) -> str:
    """`text` without control characters, which an id might contain: safe to print."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def span(seconds: float | None) -> str:
    """`0.4s`, `12s`, `3m20s`, `2h05m`, `3d04h`; `-` for None."""
    if seconds is None:
        return "-"
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


def table(
    head: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1, most: int = 48
) -> list[str]:
    """The lines of a table.

    Args:
        head: the names of the columns.
        rows: the cells; None gives `-`.
        left: the number of columns that are aligned left; the others are aligned right.
        most: the maximum number of characters of a cell.
    """
    cells = [head, *(["-" if cell is None else _cut(str(cell), most) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        padded[:left] = [cell.ljust(width) for cell, width in zip(row[:left], widths, strict=False)]
        lines.append("  ".join(padded).rstrip())
    return lines


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def queue_cells(look: QueueLook) -> tuple[object, ...]:
    """Its name, waiting, in use, limit, oldest wait, oldest hold, expected wait."""
    limit = "paused" if look.limit == 0 else f"{look.limit}{'*' * (look.override is not None)}"
    wait = span(look.oldest_wait) if look.waiting else None
    hold = span(look.oldest_hold) if look.in_use else None
    return look.queue_id, look.waiting, look.in_use, limit, wait, hold, span(look.expected_wait)


def queues_table(looks: Sequence[QueueLook]) -> list[str]:
    head = "QUEUE", "WAITING", "IN USE", "LIMIT", "OLDEST WAIT", "OLDEST HOLD", "EXPECTED", "INSTANCES"
    lines = table(head, [(*queue_cells(look), look.instances) for look in looks])
    if any(look.override is not None for look in looks):
        lines.append("* overridden by set_limit; `genesis limit QUEUE none` ends it")
    return lines


def instances_table(instances: Sequence[Instance]) -> list[str]:
    head = "INSTANCE", "HOST", "VERSION", "PID", "LEASE", "UP FOR", "LAST SEEN"
    rows = []
    for each in instances:
        seen = f"{span(each.seen)} ago" + ("" if each.alive else " (STALE)")
        who = (each.instance_id, each.host, each.version, each.pid)
        rows.append((*who, span(each.lease), span(each.age), seen))
    return table(head, rows, left=3)


def entries_table(entries: Sequence[QueueEntry]) -> list[str]:
    head = "STATE", "ITEM", "INSTANCE", "POSITION", "AGE", "FENCING TOKEN"
    rows = [
        (each.state, each.item_id, each.instance_id, each.position, span(each.age), each.fencing_token)
        for each in entries
    ]
    return table(head, rows, left=3)
