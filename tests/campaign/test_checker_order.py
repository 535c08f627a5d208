"""The checker: no call is overtaken."""

from __future__ import annotations

from tests.campaign.builder import LEASE, HistoryBuilder
from tests.campaign.checker import check
from tests.campaign.history import CONDUCTOR


def test_an_overtaken_waiter_is_found_by_the_times(run: HistoryBuilder) -> None:
    """It had its reply before the other entered, and is granted after it."""
    run.call("0", 0.0, grant=0.1, leave=1.0)
    run.call("1", 0.2, entered=0.3, grant=2.1, token=3, leave=3.0)
    run.call("2", 0.4, who="b", entered=0.5, grant=1.1, token=2, leave=2.0)
    assert run.rules() == ["fifo"]


def test_an_overtaken_waiter_is_found_by_the_places(run: HistoryBuilder) -> None:
    """They entered at the same time, and Redis gave the other the later place."""
    run.call("0", 0.0, grant=0.1, leave=1.0)
    run.call("1", 0.2, entered=0.5, place=10, grant=2.1, token=3, leave=3.0)
    run.call("2", 0.2, who="b", entered=0.5, place=11, grant=1.1, token=2, leave=2.0)
    assert run.rules() == ["fifo"]


def test_of_two_that_enter_at_the_same_time_either_may_be_first(run: HistoryBuilder) -> None:
    """If their places are unknown, their order is too."""
    run.call("0", 0.0, grant=0.1, leave=1.0)
    run.call("1", 0.2, entered=0.5, grant=2.1, token=3, leave=3.0)
    run.call("2", 0.3, who="b", entered=0.4, grant=1.1, token=2, leave=2.0)
    assert run.rules() == []


def test_a_newcomer_that_takes_a_free_slot_past_a_waiter_is_found(run: HistoryBuilder) -> None:
    """A slot that has just become free must not go to a newcomer while another call waits."""
    run.call("0", 0.0, grant=0.1, leave=1.0)
    run.call("1", 0.2, entered=0.3, grant=2.1, token=3, leave=3.0)
    run.call("2", 1.0, who="b", grant=1.05, token=2, leave=2.0)
    assert run.rules() == ["fifo"]


def test_a_waiter_that_gave_up_after_it_was_overtaken_is_found(run: HistoryBuilder) -> None:
    """By the reply of Redis it still waited when it left."""
    run.call("0", 0.0, grant=0.1, leave=1.0)
    run.call("1", 0.2, entered=0.3, end=1.5, how="cancelled", was="waiting")
    run.call("2", 0.4, who="b", entered=0.5, grant=1.1, leave=2.0)
    assert run.rules() == ["fifo"]


def test_a_waiter_that_gave_up_with_a_grant_on_its_way_was_not_overtaken(run: HistoryBuilder) -> None:
    """By the reply of Redis it held a slot when it left."""
    run.call("0", 0.0, queue="two", grant=0.1, leave=1.0)
    run.call("1", 0.2, queue="two", entered=0.3, end=1.5, how="cancelled", was="holding")
    run.call("2", 0.4, queue="two", who="b", entered=0.5, grant=1.1, leave=2.0)
    run.fault(0.0, 2.0)
    assert run.rules() == []


def test_a_waiter_whose_eviction_was_lost_with_the_data_may_come_back(run: HistoryBuilder) -> None:
    """It was evicted, did not learn of it, registered again, and was passed in between."""
    run.fault(0.0, 3.0)
    run.call("0", 0.0, who="b", grant=0.1, leave=1.0)
    run.call("1", 0.2, entered=0.3, grant=2.1, token=3, leave=3.0)
    run.add(0.9, "evict", "b", "q", "1")
    run.call("2", 0.4, who="b", entered=0.5, grant=1.1, token=2, leave=2.0)
    assert run.rules() == []


def test_a_waiter_that_gave_up_before_was_not_overtaken(run: HistoryBuilder) -> None:
    """It had left the line before the other was granted a slot."""
    run.call("0", 0.0, grant=0.1, leave=1.0)
    run.call("1", 0.2, entered=0.3, end=0.9, how="cancelled")
    run.call("2", 0.4, who="b", entered=0.5, grant=1.1, leave=2.0)
    assert run.rules() == []


def test_a_waiter_whose_lease_had_lapsed_may_be_overtaken(run: HistoryBuilder) -> None:
    """Its instance was stopped for longer than the lease, and has not registered again."""
    run.fault(0.5, 5.0, "a", settle=LEASE)
    run.call("0", 0.0, who="b", grant=0.1, leave=4.0)
    run.call("1", 0.2, entered=0.3, grant=6.1, token=3, leave=7.0)
    run.call("2", 0.4, who="b", entered=0.45, grant=4.1, token=2, leave=6.0)
    run.beat(5.0, 4.9, unknown=1)
    run.add(5.1, "restored", "a", "q")
    verdict = check(run.history())
    assert verdict.violations == []
    assert verdict.overtaken == 1


def test_a_waiter_whose_entering_was_answered_after_its_lease_may_be_overtaken(
    run: HistoryBuilder,
) -> None:
    """Its loop stood still: when its reply arrived, it might already have been reaped."""
    run.fault(0.1, 5.0, "a", settle=LEASE)
    run.call("0", 0.0, who="b", grant=0.1, leave=5.2)
    run.add(0.0, "enter", "a", "q", "1", timeout=None)
    run.add(5.0, "deadline", "a", "q", until=3.0)
    run.add(5.0, "entered", "a", "q", "1", place=None)
    run.beat(5.05, 4.95)  # sent before it was known to wait, so it does not name it
    run.call("2", 5.1, who="b", entered=5.15, grant=5.25, token=2, leave=5.5)
    run.beat(5.3, 5.05, unknown=1)
    run.add(5.4, "restored", "a", "q")
    run.add(5.6, "grant", "a", "q", "1", token=3)
    run.add(6.0, "leave", "a", "q", "1", lost=False)
    run.add(6.0, "end", "a", "q", "1", how="released")
    assert run.rules() == []


def test_a_waiter_whose_entering_was_answered_after_a_heartbeat_may_be_overtaken(
    run: HistoryBuilder,
) -> None:
    """As before, but the lease was renewed just before: the time of Redis shows that it had lapsed."""
    run.add(0.0, "clock", CONDUCTOR, offset=100.0, error=0.001)
    run.fault(0.1, 5.0, "a", settle=LEASE)
    run.call("0", 0.0, who="b", grant=0.1, token=100_050_000, leave=5.2)
    run.add(0.0, "deadline", "a", "q", until=3.0)
    run.add(0.05, "enter", "a", "q", "1", timeout=None)
    run.beat(5.05, 4.95, unknown=1)  # sent before it was known to wait, so it does not name it
    run.add(5.05, "deadline", "a", "q", until=7.95)
    run.add(5.06, "entered", "a", "q", "1", place=100_060_000)
    run.add(5.1, "restored", "a", "q")  # of another
    run.call("2", 5.1, who="b", entered=5.15, grant=5.25, token=105_200_000, leave=5.5)
    run.beat(5.3, 5.1, unknown=1)
    run.add(5.4, "restored", "a", "q")
    run.add(5.6, "grant", "a", "q", "1", token=105_550_000)
    run.add(6.0, "leave", "a", "q", "1", lost=False)
    run.add(6.0, "end", "a", "q", "1", how="released")
    assert run.rules() == []


def test_a_waiter_whose_grant_was_lost_with_the_data_was_not_overtaken(run: HistoryBuilder) -> None:
    """Its grant and its eviction were lost with the data before it learned of them; it waits again."""
    run.fault(0.0, 9.0)
    run.call("1", 0.2, queue="two", entered=0.3, grant=2.1, token=3, leave=3.0)
    run.call("2", 0.4, queue="two", who="b", grant=0.5, token=2, leave=2.0)
    run.add(0.6, "evict", "b", "two", "1")
    run.loss(0.7, 0.71)
    run.beat(0.8, 0.79, unknown=1, queue="two")
    run.add(0.82, "restored", "a", "two")
    assert run.rules() == []


def test_a_waiter_that_has_registered_again_may_not_be_overtaken(run: HistoryBuilder) -> None:
    """It has its old place again, so passing it is a violation."""
    run.fault(0.5, 5.0, "a", settle=LEASE)
    run.call("0", 0.0, who="b", grant=0.1, leave=5.5)
    run.call("1", 0.2, entered=0.3, grant=7.1, token=3, leave=8.0)
    run.call("2", 5.2, who="b", entered=5.3, grant=5.6, token=2, leave=7.0)
    run.beat(5.0, 4.9, unknown=1)
    run.add(5.1, "restored", "a", "q")
    run.beat(5.7, 5.65)
    assert run.rules() == ["fifo"]


def test_a_waiter_may_be_overtaken_between_a_loss_and_its_registration(run: HistoryBuilder) -> None:
    """Until it registers again, Redis does not know that it waits."""
    run.call("0", 0.0, grant=0.1, leave=3.0)
    run.call("1", 0.2, entered=0.3, grant=3.1, token=3, leave=4.0)
    run.loss(1.0, 1.01)
    run.fault(1.0, 1.01, settle=2.5)
    run.call("2", 1.1, who="b", grant=1.2, token=2, leave=2.0)
    run.beat(1.5, 1.49, unknown=2)
    run.add(1.52, "restored", "a", "q")
    verdict = check(run.history())
    assert verdict.violations == []
    assert verdict.overtaken == 1


def test_a_waiter_that_never_registers_again_may_be_overtaken_no_longer_than_promised(
    run: HistoryBuilder,
) -> None:
    """Nor does its lapsed lease excuse it for ever that it is passed."""
    run.call("0", 0.0, who="c", grant=0.01, leave=6.0)
    run.call("1", 0.1, entered=0.2, grant=9.01, token=9, leave=9.5)
    run.loss(1.0, 1.01)
    run.fault(1.0, 1.01)
    run.call("2", 5.6, who="b", entered=5.7, grant=6.01, token=5, leave=9.0)
    assert run.rules() == ["fifo", "window"]
