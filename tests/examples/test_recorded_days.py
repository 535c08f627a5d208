"""The days that `examples/call_centre.py` reads from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import call_centre
from examples.call_centre_day.day import Call, CannotRunError, LimitChange, Outcome
from examples.call_centre_day.recorded import Row, agents_on_duty, read_day
from tests.support.call_centre import HEADER, write_csv


def test_agents_are_on_duty_from_their_first_to_their_last_call() -> None:
    """An agent stays on duty between two calls, and the agents of overlapping shifts are added up."""
    rows = [
        Row("a", "PS", 100, 10, 20, "agent-1"),
        Row("b", "PS", 150, 0, 10, "agent-2"),
        Row("c", "PS", 200, 0, 50, "agent-1"),
    ]
    assert agents_on_duty(rows) == [LimitChange(110, 1), LimitChange(150, 2), LimitChange(160, 1)]


def test_abandoned_calls_bring_no_agent() -> None:
    """No agent was on duty for a call that hung up."""
    assert agents_on_duty([Row("a", "PS", 100, 10, None, "")]) == []


def test_unrecorded_agent_is_on_duty_for_one_call() -> None:
    """Two answered calls without an agent had two agents, each on duty for that call only."""
    rows = [
        Row("a", "PS", 100, 0, 30, ""),
        Row("b", "PS", 120, 0, 30, ""),
        Row("c", "PS", 500, 0, 10, "agent-1"),
    ]
    changes = [LimitChange(100, 1), LimitChange(120, 2), LimitChange(130, 1), LimitChange(150, 0)]
    assert agents_on_duty(rows) == [*changes, LimitChange(500, 1)]


def test_last_on_duty_stay() -> None:
    """The limit does not fall to 0 at the end of the day, so that waiting calls are answered."""
    rows = [Row("a", "PS", 100, 0, 30, "agent-1"), Row("b", "PS", 100, 0, 60, "agent-2")]
    assert agents_on_duty(rows)[-1] == LimitChange(130, 1)
    assert agents_on_duty([Row("a", "PS", 100, 0, 0, "agent-1")]) == [LimitChange(100, 1)]


def test_csv_becomes_calls_and_record(tmp_path: Path) -> None:
    """Answered calls have endless patience; abandoned calls have theirs, and a talk that is drawn."""
    path = write_csv(
        tmp_path,
        "200,later,PS,0,5,answered,60,agent-1",
        "100,first,NE,2,0,answered,30,agent-1",
        "300,gone,NE,0,12,abandoned,,",
    )
    day = read_day(path, seed=1)
    assert day.calls == [
        Call("first", 100, None, 30),
        Call("later", 200, None, 60),
        Call("gone", 300, 12, 30),
    ]
    assert day.limits == [LimitChange(100, 1)]
    assert day.start == 100
    assert day.recorded == [Outcome(100, 0, True), Outcome(200, 5, True), Outcome(300, 12, False)]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("x,a,PS,0,0,answered,5,", "entered_s must be a number of seconds, not 'x'"),
        ("1,a,PS,0,-3,answered,5,", "waited_s must be a number of seconds, not '-3'"),
        ("1,a,PS,0,nan,abandoned,,", "waited_s must be a number of seconds, not 'nan'"),
        ("1,a,PS,0,0,answered,,", "talked_s must be a number of seconds, not ''"),
        ("1,a,PS,0,0,lost,5,", "outcome must be answered or abandoned, not 'lost'"),
        ("1,,PS,0,0,answered,5,", "call_id is empty"),
        ("1,good,PS,0,0,answered,5,", "call_id 'good' is in the file twice"),
        ("1,a,PS,0,0", "it has another number of fields than the header"),
        ("1,a,PS,0,0,answered,5,agent,more", "it has another number of fields than the header"),
    ],
)
def test_malformed_row_stops_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, why: str
) -> None:
    """A malformed row is reported in one line, with exit code 2, before anything starts."""
    path = write_csv(tmp_path, "0,good,PS,0,0,answered,5,agent-1", row)
    assert call_centre.main([str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"call_centre: {path}: row 3: {why}\n"


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    """An absent, empty or binary file, and one that lacks a column, is refused with the reason."""
    with pytest.raises(CannotRunError, match="No such file"):
        read_day(tmp_path / "absent.csv", 1)
    with pytest.raises(CannotRunError, match="row 1: the header lacks entered_s, call_id"):
        read_day(write_csv(tmp_path, header=""), 1)
    with pytest.raises(CannotRunError, match="row 1: the header lacks agent"):
        read_day(write_csv(tmp_path, header=HEADER.removesuffix(",agent")), 1)
    with pytest.raises(CannotRunError, match="there are no calls in it"):
        read_day(write_csv(tmp_path), 1)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CannotRunError, match="decode"):
        read_day(binary, 1)
