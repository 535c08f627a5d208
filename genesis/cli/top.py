"""`genesis top`: the queues, live, one bar per queue. The longest lines come first."""

from __future__ import annotations

import os
import select
import shutil
import sys
from collections.abc import Callable, Sequence

from genesis.cli.show import clean, queue_cells, table
from genesis.cli.store import QueueLook

__all__ = ["frame", "run"]

_ENTER = "\x1b[?1049h\x1b[?25l"  # alternate screen, hidden cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_RED, _YELLOW, _BOLD, _PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[1m", "\x1b[0m"


def frame(looks: Sequence[QueueLook], title: str, columns: int, rows: int, color: bool) -> list[str]:
    """The lines of one frame.

    Args:
        looks: the queues.
        title: the first line.
        columns: the width of the terminal.
        rows: its height; 0 for no maximum.
        color: whether to use ANSI colors.
    """
    ordered = sorted(looks, key=lambda look: (-look.waiting, -look.in_use, look.queue_id))
    shown = ordered[: max(1, rows - 4)] if rows else ordered
    head = "QUEUE", "WAIT", "IN USE", "LIMIT", "OLDEST", "HELD", "EXPECT"
    lines = table(head, [queue_cells(look) for look in shown], most=32)
    width = max(map(len, lines)) + 2
    bars = ["SLOTS # in use, > waiting", *(_bar(look, max(10, columns - width)) for look in shown)]
    lines = [title, *(f"{line:{width}}{bar}" for line, bar in zip(lines, bars, strict=True))]
    lines = [clean(line)[:columns] for line in lines]
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
    slots = max(look.limit, look.in_use, 1)
    size = min(slots, max(4, width * 2 // 3))
    used = -(-look.in_use * size // slots)
    room = width - size - 2
    waiting = ">" * look.waiting if look.waiting <= room else ">" * (room - 1) + "+"
    return f"[{'#' * used}{'.' * (size - used)}]{waiting}"


def run(picture: Callable[[int, int, bool], list[str]], interval: float) -> None:
    """Draw `picture` on the terminal every `interval` seconds and after a key, until `q` or Ctrl-C."""
    import termios  # not on Windows
    import tty

    color = "NO_COLOR" not in os.environ
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
