"""The history that the checker reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaign.builder import LEASE, HistoryBuilder
from tests.campaign.history import CONDUCTOR, History, Log
from tests.campaign.story import Period, Story, subtract


def test_a_history_survives_being_saved(run: HistoryBuilder, tmp_path: Path) -> None:
    """A history that is saved and loaded is the same."""
    run.call("1", 0.0, grant=0.1, leave=1.0)
    run.history().save(tmp_path / "history")
    assert History.load(tmp_path / "history") == run.history()


def test_half_a_line_of_a_killed_process_is_left_out(tmp_path: Path) -> None:
    """Only complete lines are read."""
    file = tmp_path / "a.log"
    log = Log(file, "a")
    log("enter", queue="q", call="1", timeout=None)
    log.close()
    with file.open("ab") as raw:
        raw.write(b'{"at": 12, "kind"')
    assert [event.call for event in History.read(LEASE, {"q": 1}, [file]).events] == ["1"]


def test_redis_clock_narrows_the_moment_of_a_grant(run: HistoryBuilder) -> None:
    """A token is the time of Redis; with the offset of the clocks it gives the time of the grant."""
    run.add(0.0, "clock", CONDUCTOR, offset=100.0, error=0.001)
    run.call("1", 0.0, entered=0.1, grant=5.0, token=102_000_000, leave=6.0)
    (passage,) = Story(run.history()).passages.values()
    assert [*passage.taken] == pytest.approx([1.999, 2.001])


def test_what_is_left_of_a_period_outside_of_others() -> None:
    """Periods in the middle, over an end, and around the whole are taken away."""
    assert subtract(Period(0, 10), [Period(2, 3), Period(9, 12)]) == [(0, 2), (3, 9)]
    assert subtract(Period(0, 10), [Period(-1, 11)]) == []
