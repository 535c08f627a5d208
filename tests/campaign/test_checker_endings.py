"""The checker: each call ends once, in a way that fits, and has a token of its own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.campaign.builder import HistoryBuilder
from tests.campaign.checker import check
from tests.campaign.history import CONDUCTOR


def test_a_good_history_has_no_violation(run: HistoryBuilder) -> None:
    """Calls that are granted, with or without a wait, time out, are refused or are cancelled."""
    run.call("1", 0.0, grant=0.01, leave=1.0)
    run.call("2", 0.1, who="b", entered=0.11, place=5, grant=1.01, leave=2.0)
    run.call("3", 0.2, entered=0.21, place=6, end=1.5, how="cancelled")
    run.call("4", 0.3, entered=0.31, place=7, timeout=0.5, end=0.82, how="timeout")
    run.call("5", 0.4, timeout=0.0, end=0.41, how="refused")
    run.call("6", 0.5, queue="two", grant=0.51, leave=0.9)
    verdict = check(run.history())
    assert verdict.violations == []
    assert verdict.outcomes["released"] == 3


def test_a_call_that_never_ends_is_stuck(run: HistoryBuilder) -> None:
    """It entered and waits, and has no further event."""
    run.call("1", 0.0, entered=0.1)
    assert "stuck" in run.rules()


def test_the_calls_of_a_killed_process_need_no_end(run: HistoryBuilder) -> None:
    """Its calls, whether they wait or hold, end with the process."""
    run.call("1", 0.0, grant=0.1)
    run.call("2", 0.2, entered=0.3)
    run.add(0.5, "kill", "a")
    assert run.rules() == []


def test_the_calls_of_the_next_process_need_an_end(run: HistoryBuilder) -> None:
    """The kill of one instance does not excuse another."""
    run.add(0.5, "kill", "a.1")
    run.call("1", 0.0, who="a.2", entered=0.1)
    assert "stuck" in run.rules()


@pytest.mark.parametrize("extra", ["end", "grant", "leave", "lost"])
def test_nothing_of_a_call_happens_twice_or_after_its_end(run: HistoryBuilder, extra: str) -> None:
    """Two ends, two grants, two leaves, or a loss after the end are violations."""
    run.call("1", 0.0, grant=0.1, leave=0.5)
    more: dict[str, dict[str, Any]] = {
        "end": {"how": "released"},
        "grant": {"token": 9},
        "leave": {},
        "lost": {"reason": "closed", "deadline": None},
    }
    run.add(0.6, extra, "a", "q", "1", **more[extra])
    assert "ending" in run.rules()


def test_a_release_without_a_grant_is_found(run: HistoryBuilder) -> None:
    """A call that was not granted a slot cannot release one."""
    run.call("1", 0.0, end=0.5, how="released")
    assert run.rules() == ["ending"]


def test_a_timeout_after_a_grant_is_found(run: HistoryBuilder) -> None:
    """A call that was granted a slot can no longer time out."""
    run.call("1", 0.0, grant=0.1, leave=0.2, end=0.5, how="timeout", timeout=0.4)
    assert run.rules() == ["ending"]


def test_a_call_that_enters_twice_is_found(run: HistoryBuilder) -> None:
    """A call must not have two places in the line."""
    run.call("1", 0.0, entered=0.1, place=5, grant=0.15, leave=0.3)
    run.add(0.12, "entered", "a", "q", "1", place=7)
    assert run.rules() == ["ending"]


@pytest.mark.parametrize(("how", "timeout"), [("timeout", None), ("refused", None), ("refused", 9.0)])
def test_a_call_with_time_left_neither_times_out_nor_is_refused(
    run: HistoryBuilder, how: str, timeout: float | None
) -> None:
    """Only a call with timeout=0 can be refused."""
    run.call("0", 0.0, who="b", grant=0.01, leave=9.0)
    run.call("1", 0.1, entered=0.2, timeout=timeout, end=3.0, how=how)
    assert run.rules() == ["ending"]


def test_an_end_without_a_call_is_found(run: HistoryBuilder) -> None:
    """A call that never entered cannot end."""
    run.add(1.0, "end", "a", "q", "ghost", how="released")
    assert run.rules() == ["ending"]


def test_two_grants_with_one_token_are_found(run: HistoryBuilder) -> None:
    """Two grants must not have the same fencing token."""
    run.call("1", 0.0, grant=0.1, token=7, leave=0.2)
    run.call("2", 0.3, grant=0.4, token=7, leave=0.5)
    assert "token" in run.rules()


def test_a_token_smaller_than_an_earlier_one_is_found(run: HistoryBuilder) -> None:
    """A call that was granted before the other entered must have the smaller token."""
    run.call("1", 0.0, grant=0.1, token=8, leave=0.2)
    run.call("2", 0.3, grant=0.4, token=7, leave=0.5)
    assert "token" in run.rules()


def test_a_token_of_another_time_is_found(run: HistoryBuilder) -> None:
    """The offset of the two clocks gives the time of a token, which must not be before its call."""
    run.add(0.0, "clock", CONDUCTOR, offset=100.0, error=0.001)
    run.call("1", 0.0, grant=0.01, token=100_005_000, leave=1.0)
    assert run.rules() == []
    run.call("2", 8.0, grant=8.01, token=100_006_000, leave=9.0)
    assert run.rules() == ["token"]


def test_tokens_of_grants_that_overlap_may_come_in_either_order(run: HistoryBuilder) -> None:
    """The call that learns of its grant first might have been granted second."""
    run.call("1", 0.0, queue="two", grant=0.3, token=8, leave=0.5)
    run.call("2", 0.1, queue="two", grant=0.4, token=7, leave=0.6)
    assert run.rules() == []


def test_tokens_of_two_queues_are_not_compared(run: HistoryBuilder) -> None:
    """Each queue has its own tokens."""
    run.call("1", 0.0, grant=0.1, token=8, leave=0.2)
    run.call("2", 0.3, queue="two", grant=0.4, token=7, leave=0.5)
    assert run.rules() == []
