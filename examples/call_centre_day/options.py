"""The command line of `examples/call_centre.py`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from examples.call_centre_day.day import CannotRunError, Day, clock


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Replay a day of a call centre through a genesis queue, and check that every call "
        "ended exactly once, that the limit held and that no call was overtaken.",
        epilog="Without any argument: a generated day of 17 hours, in memory, in less than a minute. "
        "Exit code 1: a promise was broken. Exit code 2: the day cannot be played.",
    )
    parser.add_argument(
        "file", nargs="?", type=Path, help="CSV of a recorded day; without it a day is generated"
    )
    parser.add_argument(
        "--speed",
        type=_positive,
        default=1200.0,
        help="times faster than the day, default %(default)g; 60 plays a minute of it a second",
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="of all that is drawn (default %(default)s)"
    )
    parser.add_argument("--redis", metavar="URL", help="share the line through this Redis")
    parser.add_argument(
        "--instances", type=int, default=1, metavar="N", help="worker processes, with --redis"
    )
    parser.add_argument(
        "--lease",
        type=_positive,
        default=15.0,
        metavar="S",
        help="real seconds after which a dead instance is reaped, with --redis; default %(default)g",
    )
    parser.add_argument(
        "--kill-one-at",
        metavar="WHEN",
        help="SIGKILL the busiest instance at this time of the day (12:30), or fraction of it (0.5)",
    )
    parser.add_argument(
        "--metrics-port",
        type=int,
        metavar="PORT",
        help="serve /metrics on 127.0.0.1, in real seconds; instance n on PORT + n - 1",
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.metrics_port is not None and not 0 < options.metrics_port < 65536 - options.instances:
        parser.error(f"--metrics-port {options.metrics_port}: there is no such port")
    if options.instances < 1:
        parser.error("--instances must be at least 1")
    if options.instances > 1 and not options.redis:
        parser.error("--instances needs --redis: a line in memory is one process'")
    if options.kill_one_at is not None and options.instances < 2:
        parser.error("--kill-one-at needs --instances of at least 2: one must be left")
    return options


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(text)
    return value


def kill_time(text: str, day: Day) -> float:
    """Parse `--kill-one-at`: HH:MM, HH:MM:SS, or a fraction of the time between first and last call.

    Raises:
        CannotRunError: it is none of these, or not within the day.
    """
    first, last = day.calls[0].entered, day.calls[-1].entered
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError:
        parts = []
    if len(parts) == 1 and 0 <= parts[0] <= 1:
        return first + parts[0] * (last - first)
    if len(parts) in (2, 3):
        at = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
        if first <= at <= last:
            return at
    raise CannotRunError(
        f"--kill-one-at {text}: give a time from {clock(first)} to {clock(last)}, or a fraction"
    )
