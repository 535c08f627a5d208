"""`genesis top`: the queues, live, one bar per queue. The longest lines come first."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from genesis.cli.show import bar, clean, limit_of, span
from genesis.cli.store import QueueLook

__all__ = ["frame", "run"]

_ENTER = "\x1b[?1049h\x1b[?25l"  # alternate screen, hidden cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_RED, _YELLOW, _BOLD, _PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[1m", "\x1b[0m"


def frame(
    looks: Sequence[QueueLook],
    alive: int,
    where: str,
    size: tuple[int, int] = (100, 0),
    color: bool = False,
) -> list[str]:
    """The lines of one frame.

    Args:
        looks: the queues.
        alive: the number of live instances.
        where: the key prefix, for the first line.
        size: columns and lines of the terminal; 0 lines for no maximum.
        color: whether to use ANSI colors.
    """
    columns, rows = size
    ordered = sorted(looks, key=lambda look: (-look.waiting, -look.in_use, look.queue_id))
    waiting, in_use = sum(look.waiting for look in looks), sum(look.in_use for look in looks)
    title = (
        f"genesis {where}: {len(looks)} queues, {waiting} waiting, {in_use} in use, {alive} instances"
    )
    shown = ordered if rows == 0 else ordered[: max(1, rows - 4)]
    name = max([5, *(min(32, len(clean(look.queue_id, 32))) for look in shown)])
    head = f"{'QUEUE':{name}}  {'WAIT':>6} {'USED':>11} {'OLDEST':>7} {'HOLD':>7} {'EXPECT':>7}  "
    width = max(10, columns - len(head))
    lines = [title[:columns], "", (head + "SLOTS # in use, > waiting")[:columns]]
    for look in shown:
        used = f"{look.in_use}/{limit_of(look)}"
        oldest = span(look.oldest_wait if look.waiting else None)
        hold = span(look.oldest_hold if look.in_use else None)
        text = (
            f"{clean(look.queue_id, 32):{name}}  {look.waiting:>6} {used:>11} {oldest:>7} {hold:>7} "
            f"{span(look.expected_wait):>7}  {bar(look, width)}"
        )[:columns]
        if color and look.waiting:
            text = (_RED if look.in_use < look.limit or not look.limit else _YELLOW) + text + _PLAIN
        lines.append(text)
    if len(shown) < len(ordered):
        lines.append(f"... and {len(ordered) - len(shown)} more")
    if color:
        lines[0] = _BOLD + lines[0] + _PLAIN
    return lines


def run(picture: Callable[[tuple[int, int], bool], list[str]], interval: float) -> None:
    """Draw `picture` every `interval` seconds until `q` or Ctrl-C; once if stdout is no terminal."""
    if not sys.stdout.isatty():
        sys.stdout.write("\n".join(picture((100, 0), False)) + "\n")
        return
    color = "NO_COLOR" not in os.environ
    with contextlib.suppress(KeyboardInterrupt), _screen():
        while True:
            size = shutil.get_terminal_size()
            lines = picture((size.columns, size.lines), color)
            lines.append(f"every {interval:g} s; q quits")
            # Clear each line while it is written: clearing the whole screen would flicker.
            sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines[:-1]))
            sys.stdout.write(lines[-1] + "\x1b[K\x1b[J")
            sys.stdout.flush()
            if _quit_within(interval):
                return


def _quit_within(seconds: float) -> bool:
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return False
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        ready, _, _ = select.select([sys.stdin], [], [], left)
        if ready and os.read(sys.stdin.fileno(), 64)[:1] in (b"q", b"Q", b"\x03", b"\x04", b""):
            return True
    return False


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """Use the alternate screen, and restore the terminal however this ends."""
    restore: Callable[[], Any] = lambda: None  # noqa: E731
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # without termios, keys need Enter
            import termios
            import tty

            descriptor = sys.stdin.fileno()
            before = termios.tcgetattr(descriptor)
            tty.setcbreak(descriptor)

            def restore() -> None:
                termios.tcsetattr(descriptor, termios.TCSADRAIN, before)

    try:
        sys.stdout.write(_ENTER)
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        restore()
