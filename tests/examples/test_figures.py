"""The ideal line that a run is compared with, and the figures of both."""

from __future__ import annotations

from examples.call_centre_day.day import Call, Day, LimitChange, Outcome
from examples.call_centre_day.figures import Figures, ideal_outcomes


def test_ideal_line_is_first_come_first_served() -> None:
    """One agent answers in order, one caller hangs up, and a second agent takes the next call."""
    calls = [
        Call("a", 0, None, 100),
        Call("b", 10, 30, 100),
        Call("c", 20, None, 50),
        Call("d", 30, 500, 1),
    ]
    day = Day("", calls, [LimitChange(0, 1), LimitChange(80, 2)])
    outcomes, end = ideal_outcomes(day)
    assert outcomes == [
        Outcome(0, 0, answered=True),
        Outcome(10, 30, answered=False),
        Outcome(20, 60, answered=True),
        Outcome(30, 70, answered=True),
    ]
    assert end == 130  # when c has talked; d, which was answered, no longer hangs up at 530


def test_figures_follow_their_definitions() -> None:
    """A call that hung up within 20 s lowers the strict service level, but not the lenient one."""
    figures = Figures.of(
        [
            Outcome(0, 0, answered=True),
            Outcome(0, 20, answered=True),
            Outcome(10, 40, answered=True),
            Outcome(20, 5, answered=False),
            Outcome(20, 100, answered=False),
        ]
    )
    assert figures == Figures(
        answered=3, abandoned=2, speed_of_answer=20, strict_level=2 / 5, lenient_level=2 / 4, depth=3
    )
