"""The checker: slots do not stay free, and losses, errors and delays have a cause."""

from __future__ import annotations

import pytest

from tests.campaign.builder import LEASE, HistoryBuilder
from tests.campaign.checker import check
from tests.campaign.history import CONDUCTOR


def test_a_free_slot_that_stays_free_while_somebody_waits_is_found(run: HistoryBuilder) -> None:
    """A slot stays free for a second without a fault."""
    run.call("1", 0.0, grant=0.1, leave=1.0)
    run.call("2", 0.2, who="b", entered=0.3, grant=2.0, leave=3.0)
    assert run.rules() == ["standstill"]


def test_a_slot_that_was_lost_for_its_holder_alone_is_not_free(run: HistoryBuilder) -> None:
    """Its lease lapsed by its own clock, but Redis had renewed it: the slot is free after the body."""
    run.fault(0.2, 0.9, "a")
    run.call("1", 0.0, grant=0.1, leave=3.0)
    run.add(0.9, "lost", "a", "q", "1", reason="lapsed", deadline=0.9)
    run.call("2", 0.8, who="b", entered=0.85, grant=3.05, leave=4.0)
    assert run.rules() == []


def test_a_second_slot_that_stays_free_is_found(run: HistoryBuilder) -> None:
    """The limit is 2, one call holds, one waits."""
    run.call("1", 0.0, queue="two", grant=0.1, leave=2.0)
    run.call("2", 0.2, queue="two", who="b", entered=0.3, grant=2.1, leave=3.0)
    assert run.rules() == ["standstill"]


def test_a_free_slot_is_excused_while_a_fault_is_felt(run: HistoryBuilder) -> None:
    """The fault and the time that is promised for recovery cover the standstill."""
    run.call("1", 0.0, grant=0.1, leave=1.0)
    run.call("2", 0.2, who="b", entered=0.3, grant=2.0, leave=3.0)
    run.fault(0.9, 1.2, "a", settle=0.75)
    assert run.rules() == []


def test_a_free_slot_is_not_excused_longer_than_promised(run: HistoryBuilder) -> None:
    """The standstill went on for too long after the fault."""
    run.call("1", 0.0, grant=0.1, leave=1.0)
    run.call("2", 0.2, who="b", entered=0.3, grant=2.0, leave=3.0)
    run.fault(0.9, 1.2, "a", settle=0.5)
    assert run.rules() == ["standstill"]


@pytest.mark.parametrize(
    ("name", "target", "rules"),
    [
        ("restart-with-data", "", []),
        ("cut", "b", []),
        ("cut", "c", ["standstill"]),
        ("", "", ["standstill"]),
    ],
)
def test_a_connection_that_ends_soon_again_is_made_after_a_pause(
    run: HistoryBuilder, name: str, target: str, rules: list[str]
) -> None:
    """The link was up for less than a second, so it does not connect again at once."""
    run.call("1", 0.0, grant=0.1, leave=1.0)
    run.call("2", 0.2, who="b", entered=0.3, grant=2.0, leave=3.0)
    for worker in "abc":
        run.add(0.0, "up", worker, worker=worker)
    if name:
        run.fault(0.2, 0.3, target, name=name)
    run.fault(1.0, 1.1, "b", settle=0.3, name="cut")
    assert run.rules() == rules


def test_a_machine_that_stood_still_excuses_as_much(run: HistoryBuilder) -> None:
    """A loop was late by 0.4 s; three times that delay excuses a standstill of a second."""
    run.call("1", 0.0, grant=0.1, leave=1.0)
    run.call("2", 0.2, who="b", entered=0.3, grant=2.0, leave=3.0)
    run.add(1.6, "lag", "b", seconds=0.4)
    assert run.rules() == []
    run.fault(1.1, 1.25, "b", name="block")
    assert run.rules() == ["standstill"], "that loop stood still because of a fault"


def test_a_refusal_although_a_slot_is_free_is_found(run: HistoryBuilder) -> None:
    """With timeout=0 and a slot free for long it is a violation; just after a release it is not."""
    run.call("0", 0.0, who="b", grant=0.01, leave=1.0)
    run.call("1", 1.05, timeout=0.0, end=1.1, how="refused")
    assert run.rules() == []
    run.call("2", 2.0, timeout=0.0, end=2.1, how="refused")
    assert run.rules() == ["standstill"]
    run.fault(1.9, 1.95, "b", settle=0.2)
    assert run.rules() == []


@pytest.mark.parametrize("seconds", [0.5, 0.01])
def test_a_connection_given_up_excuses_only_on_a_busy_machine(
    run: HistoryBuilder, seconds: float
) -> None:
    """A second of standstill after a timeout is excused only if the machine had stood still."""
    run.add(0.0, "up", "b.1", worker="b")
    run.call("1", 0.0, grant=0.1, leave=1.0)
    run.call("2", 0.2, who="b.1", entered=0.3, grant=2.0, leave=3.0)
    run.add(0.9, "disrupted", "b.1", reason="timeout")
    run.add(0.8, "lag", CONDUCTOR, seconds=seconds)
    assert run.rules() == ([] if seconds > LEASE / 12 else ["standstill"])


def test_a_paused_queue_does_not_stand_still(run: HistoryBuilder) -> None:
    """At limit 0 no slot is granted."""
    run.limit(0.0, 0.1, 0)
    run.call("1", 0.2, who="b", entered=0.3, grant=2.02, leave=3.0)
    run.limit(2.0, 2.01, None)
    assert run.rules() == []


def test_a_slot_lost_without_a_cause_is_found(run: HistoryBuilder) -> None:
    """Its lease lapsed without a fault or a delay."""
    run.call("1", 0.0, grant=0.1, leave=5.0)
    run.add(4.0, "lost", "a", "q", "1", reason="lapsed", deadline=3.9)
    assert run.rules() == ["cause"]


@pytest.mark.parametrize("seconds", [0.3, 0.6])
def test_a_slot_is_not_lost_because_the_machine_was_a_little_late(
    run: HistoryBuilder, seconds: float
) -> None:
    """Three delays of a tenth of the lease leave time to renew it; three of a fifth might not."""
    run.call("1", 0.0, grant=0.1, leave=5.0)
    run.add(4.0, "lost", "a", "q", "1", reason="reaped", deadline=None)
    run.add(3.0, "lag", CONDUCTOR, seconds=seconds)
    assert run.rules() == (["cause"] if seconds < LEASE / 6 else [])


def test_a_slot_lost_because_of_a_fault_elsewhere_is_found(run: HistoryBuilder) -> None:
    """A fault of one worker does not explain that another loses a slot."""
    run.add(0.0, "up", "a", worker="a")
    run.call("1", 0.0, grant=0.1, leave=5.0)
    run.add(4.0, "lost", "a", "q", "1", reason="reaped", deadline=None)
    run.fault(1.0, 4.0, "b")
    assert run.rules() == ["cause"]


def test_a_slot_lost_in_a_fault_is_explained(run: HistoryBuilder) -> None:
    """Its worker was stopped for longer than the lease."""
    run.add(0.0, "up", "a.1", worker="a")
    run.call("1", 0.0, who="a.1", grant=0.1, leave=5.0)
    run.add(4.0, "lost", "a.1", "q", "1", reason="lapsed", deadline=3.9)
    run.fault(1.0, 4.0, "a")
    assert run.rules() == []


def test_a_slot_lost_to_a_closing_is_found(run: HistoryBuilder) -> None:
    """No worker closes its queue before all calls have ended."""
    run.fault(0.0, 9.0)
    run.call("1", 0.0, grant=0.1, leave=5.0)
    run.add(4.0, "lost", "a", "q", "1", reason="closed", deadline=None)
    assert run.rules() == ["cause"]


def test_an_eviction_without_a_request_is_found(run: HistoryBuilder) -> None:
    """A waiter and a holder were evicted without a request."""
    run.call("1", 0.0, grant=0.1, leave=5.0)
    run.add(4.0, "lost", "a", "q", "1", reason="evicted", deadline=None)
    run.call("2", 0.2, entered=0.3, end=1.0, how="evicted")
    assert len(check(run.history()).of("cause")) == 2


def test_a_call_that_fails_without_a_cause_is_found(run: HistoryBuilder) -> None:
    """It raised BackendUnavailableError although Redis was available."""
    run.call("1", 0.0, end=1.0, how="failed")
    assert run.rules() == ["cause"]


def test_a_timeout_that_comes_too_early_is_found(run: HistoryBuilder) -> None:
    """It timed out after 1 s instead of 2."""
    run.call("0", 0.0, who="b", grant=0.01, leave=3.0)
    run.call("1", 0.1, entered=0.2, timeout=2.0, end=1.1, how="timeout")
    assert run.rules() == ["timing"]


def test_a_timeout_that_comes_too_late_is_found(run: HistoryBuilder) -> None:
    """It timed out after 3 s instead of 2; a loop that stood still meanwhile explains that."""
    run.call("0", 0.0, who="b", grant=0.01, leave=4.0)
    run.call("1", 0.1, entered=0.2, timeout=2.0, end=3.2, how="timeout")
    assert run.rules() == ["timing"]
    run.add(3.2, "lag", "a", seconds=1.0)
    assert run.rules() == []


def test_a_grant_long_after_the_timeout_is_found(run: HistoryBuilder) -> None:
    """It should have timed out before."""
    run.call("0", 0.0, who="b", grant=0.01, leave=4.0)
    run.call("1", 0.1, entered=0.2, timeout=2.0, grant=4.01, leave=5.0)
    assert run.rules() == ["timing"]


def test_what_is_left_over_is_a_violation(run: HistoryBuilder) -> None:
    """Whatever the conductor finds after a run is a violation."""
    run.add(9.0, "left_over", CONDUCTOR, what="a key has no expiry")
    assert run.rules() == ["left_over"]


def test_a_registration_that_comes_too_late_is_found(run: HistoryBuilder) -> None:
    """It should be registered a third of the lease after the loss, and was after two thirds."""
    run.call("0", 0.0, who="b", grant=0.01, leave=9.0)
    run.call("1", 0.1, entered=0.2, end=9.0, how="cancelled")
    run.loss(1.0, 1.01)
    run.fault(1.0, 1.01)
    run.beat(3.0, 2.99, unknown=1)
    run.add(3.01, "restored", "a", "q")
    assert run.rules() == ["window"]


def test_a_registration_in_time_is_measured(run: HistoryBuilder) -> None:
    """It is registered again a heartbeat after the loss."""
    run.call("0", 0.0, who="b", grant=0.01, leave=9.0)
    run.call("1", 0.1, entered=0.2, end=9.0, how="cancelled")
    run.loss(1.0, 1.01)
    run.fault(1.0, 1.01)
    run.beat(1.8, 1.79, unknown=1)
    run.add(1.81, "restored", "a", "q")
    verdict = check(run.history())
    assert verdict.violations == []
    assert verdict.windows == [pytest.approx(0.8)]
