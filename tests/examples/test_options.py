"""The command line of `examples/call_centre.py`."""

from __future__ import annotations

import pytest

from examples import call_centre
from examples.call_centre_day.day import Call, CannotRunError, Day
from examples.call_centre_day.options import kill_time


def test_kill_time_is_a_clock_or_a_fraction() -> None:
    """--kill-one-at takes 00:15, 00:15:30 or 0.5, and refuses a time outside of the day."""
    day = Day("", [Call("a", 600, None, 1), Call("b", 1200, None, 1)], [])
    assert kill_time("00:15", day) == 900
    assert kill_time("00:15:30", day) == 930
    assert kill_time("0.5", day) == 900
    for wrong in ("noon", "1.5", "00:05", "23:00", "1:2:3:4", ""):
        with pytest.raises(CannotRunError, match="from 00:10:00 to 00:20:00"):
            kill_time(wrong, day)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--speed", "0"],
        ["--speed", "inf"],
        ["--instances", "0"],
        ["--instances", "2"],
        ["--kill-one-at", "0.5"],
        ["--metrics-port", "70000"],
    ],
)
def test_impossible_options_are_refused(arguments: list[str]) -> None:
    """An option that cannot be satisfied is a usage error, with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        call_centre.main(arguments)
    assert stopped.value.code == 2
