"""What is printed at the beginning and at the end of a run.

Here the end, for a recorded day over Redis with three instances, 600 times as fast:

                                                              this run    ideal line      recorded
    calls answered                                                1880          1887          1511
    calls abandoned                                                359           352           728
    average speed of answer (mean wait of the answered)         46.4 s        45.1 s       134.8 s
    answered within 20 s, of all calls                           50.0%         51.5%         18.0%
    ... of all but those who hung up within 20 s                 52.6%         54.2%         19.6%
    maximum depth of the line                                       19            19            21

    ended exactly once: 2239 of 2239
    limit held at every instant: yes (1880 grants, 47 changes of the limit; 0 slots lost)
    FIFO held at every instant: yes (1005 snapshots of the line, with 917 calls seen waiting; ...)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

from examples.call_centre_day.day import Day
from examples.call_centre_day.figures import SERVICE_LEVEL, Figures, ideal_outcomes
from examples.call_centre_day.judge import check_endings, check_limit, check_order
from examples.call_centre_day.replay import REAP_MARGIN, Replay

MAX_VIOLATIONS_SHOWN = 20


def headline(day: Day, options: argparse.Namespace) -> str:
    """What is going to be played, how long it takes, and where its metrics are."""
    minutes = (ideal_outcomes(day)[1] - day.start) / options.speed / 60
    where = f"over Redis, instances: {options.instances}" if options.redis else "in memory"
    speed = f"{options.speed:g} times as fast as the day: {minutes:.1f} minutes"
    lines = [f"{day.title}, {len(day.calls)} calls, {where}, {speed}"]
    if options.metrics_port is not None:
        ports = range(options.metrics_port, options.metrics_port + options.instances)
        lines += [f"metrics: http://127.0.0.1:{port}/metrics" for port in ports]
    return "\n".join(lines)


def report(day: Day, replay: Replay, lease: float) -> bool:
    """Print the summary. Returns whether all promises were kept."""
    history = replay.history
    columns = {
        "this run": Figures.of(replay.outcomes()),
        "ideal line": Figures.of(ideal_outcomes(day)[0]),
    }
    if day.recorded:
        columns["recorded"] = Figures.of(day.recorded)
    print("\n", *_table(columns), "", sep="\n")

    endings, cut_off = check_endings(history, [call.call_id for call in day.calls])
    endings += [f"{event.call_id} failed: {event.detail}" for event in history.all_of("failed")]
    limit, order = check_limit(history), check_order(history)
    ended = f"{len(day.calls) - len(endings) - len(cut_off)} of {len(day.calls)}"
    if cut_off:
        ended += f"; {len(cut_off)} were cut off with their instance: {', '.join(cut_off)}"
    granted = history.all_of("granted")
    waited = sum(event.waited > 0 for event in granted) + len(history.all_of("abandoned"))
    seen = len({call_id for snapshot in history.snapshots for call_id in snapshot.waiting})
    lost = sum(event.detail == "lost" for event in history.all_of("leaving"))
    print(f"ended exactly once: {ended}")
    print(
        f"limit held at every instant: {_verdict(limit)} ({len(granted)} grants, "
        f"{len(history.limits)} changes of the limit; {lost} slots lost)"
    )
    print(
        f"FIFO held at every instant: {_verdict(order)} ({len(history.snapshots)} snapshots of the "
        f"line, with {seen} calls seen waiting; {waited} waited)"
    )
    print(f"the call that entered latest was {replay.lateness * 1000:.0f} ms late")
    violations = endings + limit + order
    if replay.reaping is not None:
        print(f"{replay.reaping} (lease {lease:g} s)")
        if replay.reaping.seconds > lease + REAP_MARGIN:
            violations.append("what the killed instance left was not reaped within the lease")
    for violation in violations[:MAX_VIOLATIONS_SHOWN]:
        print(f"  VIOLATION: {violation}")
    if len(violations) > MAX_VIOLATIONS_SHOWN:
        print(f"  ... and {len(violations) - MAX_VIOLATIONS_SHOWN} more")
    return not violations


def _verdict(violations: list[str]) -> str:
    return f"NO, {len(violations)} violations" if violations else "yes"


def _table(columns: dict[str, Figures]) -> Iterator[str]:
    rows: list[tuple[str, Callable[[Figures], str]]] = [
        ("calls answered", lambda f: f"{f.answered}"),
        ("calls abandoned", lambda f: f"{f.abandoned}"),
        ("average speed of answer (mean wait of the answered)", lambda f: f"{f.speed_of_answer:.1f} s"),
        (f"answered within {SERVICE_LEVEL:g} s, of all calls", lambda f: f"{f.strict_level:.1%}"),
        (
            f"... of all but those who hung up within {SERVICE_LEVEL:g} s",
            lambda f: f"{f.lenient_level:.1%}",
        ),
        ("maximum depth of the line", lambda f: f"{f.depth}"),
    ]
    yield f"{'':52}" + "".join(f"{name:>14}" for name in columns)
    for title, text in rows:
        yield f"{title:52}" + "".join(f"{text(figures):>14}" for figures in columns.values())
