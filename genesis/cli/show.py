"""Plain text for the terminal: tables, durations, and the live picture of `genesis top`."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import unicodedata
from collections.abc import Callable, Sequence

from genesis.cli.store import QueueLook

_ENTER = "\x1b[?1049h\x1b[?25l"  # alternate screen, hidden cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_RED, _YELLOW, _BOLD, _PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[1m", "\x1b[0m"


def clean(text: str) -> str:
    """`text` without control characters, which an id might contain: safe to print."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _width(text: str) -> int:
    """The cells of a terminal that `text` takes: two for a wide letter, none for a mark on another."""
    if text.isascii():
        return len(text)
    marks = sum(unicodedata.category(char) in ("Mn", "Me") for char in text)
    return len(text) - marks + sum(unicodedata.east_asian_width(char) in "FW" for char in text)


def _cut(text: str, width: int, end: str = "") -> str:
    """`text`, or as much of it as fits into so many cells together with `end`."""
    if _width(text) <= width:
        return text
    text = text[:width]
    while _width(text + end) > width:
        text = text[:-1]
    return text + end


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def span(seconds: float | None) -> str:
    """`0.4s`, `12s`, `3m20s`, `2h05m`, `3d04h`; `-` for None."""
    if seconds is None:
        return "-"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d{h:02}h"
    if hours:
        return f"{hours}h{m:02}m"
    return f"{minutes}m{s:02}s" if minutes else f"{s}s"


def table(head: Sequence[str], *rows: Sequence[object], left: int = 1, most: int = 48) -> list[str]:
    """The lines of a table.

    Args:
        head: the names of the columns.
        rows: the cells. A float is shown as a duration, None as `-`.
        left: the number of columns that are aligned left; the others are aligned right.
        most: the maximum width of a cell.
    """

    def text(cell: object) -> str:
        shown = span(cell) if cell is None or isinstance(cell, float) else str(cell)
        return _cut(shown, most, "…")

    cells = [[text(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    lines = [
        [*map(_pad, row[:left], widths), *map(str.rjust, row[left:], widths[left:])] for row in cells
    ]
    return ["  ".join(line).rstrip() for line in lines]


def queue_cells(look: QueueLook) -> tuple[object, ...]:
    """Its name, waiting, in use, limit, oldest wait, oldest hold, expected wait."""
    limit: object = look.known_limit
    if look.override is not None:
        limit = f"{look.override}*" if look.override else "paused"
    wait = look.oldest_wait if look.waiting else None
    hold = look.oldest_hold if look.in_use else None
    return look.queue_id, look.waiting, look.in_use, limit, wait, hold, look.expected_wait


def frame(looks: Sequence[QueueLook], title: str, columns: int, rows: int, color: bool) -> list[str]:
    """The lines of one picture of `top`, longest lines first; `rows` is 0 for no maximum."""
    ordered = sorted(looks, key=lambda look: (-look.waiting, -look.in_use, look.queue_id))
    room = rows - 4 if rows else len(ordered)  # without title, empty line, head, and the line of `live`
    shown = ordered if len(ordered) <= room else ordered[: max(1, room - 1)]  # one for "... and N more"
    head = "QUEUE", "WAIT", "IN USE", "LIMIT", "OLDEST", "HELD", "EXPECT"
    lines = table(head, *map(queue_cells, shown), most=32)
    width = max(map(_width, lines)) + 2
    bars = ["SLOTS # in use, > waiting", *(_bar(look, max(10, columns - width)) for look in shown)]
    lines = [title, *(_pad(line, width) + bar for line, bar in zip(lines, bars, strict=True))]
    lines = [_cut(clean(line), columns) for line in lines]
    if color:
        colors = [_BOLD, "", *map(_color, shown)]
        lines = [code + line + _PLAIN for code, line in zip(colors, lines, strict=True)]
    if len(shown) < len(ordered):
        lines.append(f"... and {len(ordered) - len(shown)} more")
    return [lines[0], "", *lines[1:]]


def _color(look: QueueLook) -> str:
    if not look.waiting:
        return ""
    return _YELLOW if 0 < look.limit <= look.in_use else _RED


def _bar(look: QueueLook, width: int) -> str:
    """Slots in use as `#`, free slots as `.`, then waiters as `>`, scaled to `width` characters."""
    if look.known_limit is None:
        return ""
    slots = max(look.limit, look.in_use, 1)
    size = min(slots, max(4, width * 2 // 3))
    used = -(-look.in_use * size // slots)
    room = width - size - 2
    waiting = ">" * look.waiting if look.waiting <= room else ">" * (room - 1) + "+"
    return f"[{'#' * used}{'.' * (size - used)}]{waiting}"


def live(picture: Callable[[int, int, bool], list[str]], interval: float) -> None:
    """Draw `picture` on the terminal every `interval` seconds and after a key, until `q` or Ctrl-C."""
    import termios  # not on Windows
    import tty

    color = "NO_COLOR" not in os.environ
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # past `finally`
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        sys.stdout.write(_ENTER)
        while True:
            lines = [*picture(*shutil.get_terminal_size(), color), f"every {interval:g} s; q quits"]
            # Clear each line while it is written: clearing the whole screen would flicker.
            sys.stdout.write("\x1b[H" + "\x1b[K\n".join(lines) + "\x1b[K\x1b[J")
            sys.stdout.flush()
            ready, _, _ = select.select([sys.stdin], [], [], interval)
            if ready and os.read(sys.stdin.fileno(), 64)[:1] in (b"q", b"Q", b"\x03", b"\x04", b""):
                return
    except KeyboardInterrupt:
        pass
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
