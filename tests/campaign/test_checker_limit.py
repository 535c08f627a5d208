"""The checker: never more holders than the limit allows."""

from __future__ import annotations

import pytest

from tests.campaign.builder import LEASE, HistoryBuilder
from tests.campaign.checker import check


def test_two_holders_where_one_may_hold_are_found(run: HistoryBuilder) -> None:
    """Calls of two processes hold the same slot for a moment."""
    run.call("1", 0.0, grant=0.1, leave=1.0)
    run.call("2", 0.5, who="b", grant=0.9, leave=2.0)
    assert run.rules() == ["limit"]


def test_a_grant_right_after_a_leave_is_allowed(run: HistoryBuilder) -> None:
    """The leave began before the grant was recorded."""
    run.call("1", 0.0, grant=0.1, leave=0.89)
    run.call("2", 0.5, who="b", entered=0.51, grant=0.9, leave=2.0)
    assert run.rules() == []


def test_a_holder_counts_until_its_slot_can_be_lost(run: HistoryBuilder) -> None:
    """From its lease deadline on, `slot.lost` is true, even if the call checks it later."""
    run.fault(0.2, 8.0, "a")
    run.call("1", 0.0, grant=0.1, leave=8.0)
    run.add(7.9, "lost", "a", "q", "1", reason="lapsed", deadline=3.0)
    run.call("2", 2.0, who="b", entered=2.01, grant=3.5, leave=4.0)
    assert run.rules() == []


def test_a_grant_before_the_holder_could_know_is_found(run: HistoryBuilder) -> None:
    """The next call is granted the slot while `slot.lost` of the first is still false."""
    run.fault(0.2, 8.0, "a")
    run.call("1", 0.0, grant=0.1, leave=8.0)
    run.add(7.9, "lost", "a", "q", "1", reason="lapsed", deadline=3.0)
    run.call("2", 2.0, who="b", entered=2.01, grant=2.5, leave=4.0)
    assert run.rules() == ["limit"]


def test_a_killed_holder_holds_no_longer(run: HistoryBuilder) -> None:
    """Its slot is granted again after it was reaped."""
    run.call("1", 0.0, grant=0.1)
    run.add(0.5, "kill", "a")
    run.fault(0.5, 0.5, "a", settle=LEASE)
    run.call("2", 0.2, who="b", entered=0.3, grant=3.4, leave=4.0)
    assert run.rules() == []


@pytest.mark.parametrize("loss", [False, True])
def test_a_grant_that_came_back_with_old_data_held_nothing_before(
    run: HistoryBuilder, loss: bool
) -> None:
    """A stopped waiter is granted and reaped. Then Redis restarts with data from before the reaping."""
    run.fault(0.5, 6.9, "a", settle=LEASE)
    run.call("1", 0.0, entered=0.1, grant=7.0, token=20, leave=7.5)
    run.call("2", 0.05, who="b", entered=0.15, grant=3.5, token=30, leave=4.0)
    if loss:
        run.loss(4.5, 5.0)
    assert ("limit" in run.rules()) is not loss


def test_an_evicted_holder_holds_no_longer(run: HistoryBuilder) -> None:
    """Its slot is free from the eviction on, although it learns of that a little later."""
    run.call("1", 0.0, grant=0.1, leave=2.0)
    run.add(0.5, "evict", "b", "q", "1")
    run.add(0.7, "lost", "a", "q", "1", reason="evicted", deadline=None)
    run.call("2", 0.2, who="b", entered=0.3, grant=0.6, leave=1.0)
    assert run.rules() == []


@pytest.mark.parametrize(("found", "trouble"), [(0, False), (0, True), (1, False)])
def test_a_holder_that_was_evicted_in_vain_holds_on(
    run: HistoryBuilder, found: int, trouble: bool
) -> None:
    """An eviction that found no call excuses no second holder, unless its reply might be wrong."""
    run.call("1", 0.0, grant=0.1, leave=4.5)
    run.add(0.5, "evict", "b", "q", "1")
    run.add(0.6, "evicted", "b", "q", "1", count=found)
    run.call("2", 1.0, who="b", grant=1.1, leave=4.0)
    if trouble:
        run.fault(0.4, 0.7, "b")
    assert run.rules() == (["limit"] if not found and not trouble else [])


def test_an_eviction_that_might_have_failed_frees_no_slot(run: HistoryBuilder) -> None:
    """The data was lost, so the eviction found nothing, and the holder registered again."""
    run.call("1", 0.0, grant=0.1, leave=4.5)
    run.add(0.5, "evict", "b", "q", "1")
    run.add(0.6, "evicted", "b", "q", "1", count=0)
    run.fault(0.4, 0.7, "b")
    run.call("2", 1.0, who="b", entered=1.1, grant=4.51, leave=5.0)
    assert run.rules() == []


def test_a_raised_limit_holds_from_its_request_on(run: HistoryBuilder) -> None:
    """Between `set_limit` and its reply either limit might be in force."""
    run.call("1", 0.0, grant=0.1, leave=2.0)
    run.limit(0.5, 0.8, 2)
    run.call("2", 0.2, who="b", entered=0.3, grant=0.6, leave=1.0)
    assert run.rules() == []


def test_a_grant_over_a_limit_that_was_lowered_before_is_found(run: HistoryBuilder) -> None:
    """The limit was raised and lowered again before the grant."""
    run.call("1", 0.0, grant=0.1, leave=3.0)
    run.limit(0.5, 0.6, 2)
    run.limit(0.7, 0.8, None)
    run.call("2", 0.9, who="b", grant=1.0, leave=2.0)
    assert run.rules() == ["limit"]


def test_lowering_takes_nothing_from_holders(run: HistoryBuilder) -> None:
    """Two calls hold when the limit becomes 1; both may go on."""
    run.limit(0.0, 0.1, 2)
    run.call("1", 0.2, grant=0.3, leave=2.0)
    run.call("2", 0.2, who="b", grant=0.4, leave=2.0)
    run.limit(0.5, 0.6, 1)
    assert run.rules() == []


def test_an_override_that_failed_may_be_in_force(run: HistoryBuilder) -> None:
    """Its reply was lost, so it might have been executed."""
    run.call("1", 0.0, grant=0.1, leave=3.0)
    run.limit(0.5, 0.6, 2, ok=False)
    run.call("2", 0.9, who="b", grant=1.0, leave=2.0)
    assert run.rules() == []


def test_an_override_that_failed_is_over_with_the_next_that_did_not(run: HistoryBuilder) -> None:
    """The failed `set_limit` is executed before the next one, or never."""
    run.limit(0.0, 0.1, 5, ok=False)
    run.limit(4.0, 4.1, None)
    run.call("1", 5.0, grant=5.1, leave=7.0)
    run.call("2", 5.0, who="b", grant=5.2, leave=7.0)
    assert run.rules() == ["limit"]


def test_a_pause_that_failed_is_over_with_the_next_that_did_not(run: HistoryBuilder) -> None:
    """A possible pause that is over does not excuse a slot that stays free."""
    run.fault(0.0, 1.0, settle=2.0)
    run.limit(0.5, 0.6, 0, ok=False)
    run.limit(4.0, 4.1, None)
    run.call("1", 5.0, grant=5.1, leave=6.0)
    run.call("2", 5.2, who="b", entered=5.3, grant=7.0, leave=8.0)
    assert run.rules() == ["standstill"]


def test_a_pause_that_failed_might_run_when_the_server_is_back(run: HistoryBuilder) -> None:
    """The command was still in the server's socket when its reply was given up."""
    run.fault(0.0, 5.0, settle=1.0)
    run.limit(0.5, 0.6, 0, ok=False)
    run.limit(4.0, 4.1, None)
    run.call("1", 6.0, grant=6.1, leave=7.0)
    run.call("2", 6.2, who="b", entered=6.3, grant=8.0, leave=9.0)
    assert run.rules() == []


def test_an_ended_override_comes_back_only_if_a_loss_was_near(run: HistoryBuilder) -> None:
    """An instance might register an old override again after a loss, but not much later."""
    run.limit(0.0, 0.1, 2)
    run.limit(0.2, 0.3, None)
    run.loss(1.0, 1.1)
    run.call("1", 2.0, grant=2.1, leave=4.0)
    run.call("2", 2.5, who="b", grant=2.6, leave=4.0)
    assert run.rules() == []
    run.limit(4.5, 4.6, None)
    run.call("3", 5.0, grant=5.1, leave=6.0)
    run.call("4", 5.0, who="b", grant=5.2, leave=6.0)
    assert run.rules() == ["limit"]


def test_an_overshoot_right_after_a_loss_is_excused_and_measured(run: HistoryBuilder) -> None:
    """Another instance is granted a slot before the holder has registered again."""
    run.call("1", 0.0, grant=0.1, leave=3.0)
    run.beat(0.9, 0.89)
    run.loss(1.0, 1.01)
    run.fault(1.0, 1.01)
    run.call("2", 1.1, who="b", grant=1.2, leave=2.0)
    run.beat(1.5, 1.49, unknown=1)
    run.add(1.52, "restored", "a", "q")
    verdict = check(run.history())
    assert verdict.violations == []
    assert verdict.overshoots == [pytest.approx(0.8)]
    assert verdict.overshot_after == [pytest.approx(0.19)]


def test_an_overshoot_after_the_holder_has_registered_again_is_found(run: HistoryBuilder) -> None:
    """Redis knew of the holder again, so the second grant is a violation."""
    run.call("1", 0.0, grant=0.1, leave=3.0)
    run.loss(1.0, 1.01)
    run.fault(1.0, 1.01)
    run.beat(1.5, 1.49, unknown=1)
    run.add(1.52, "restored", "a", "q")
    run.call("2", 1.6, who="b", grant=1.7, leave=2.0)
    assert run.rules() == ["limit"]


def test_a_holder_that_never_registers_again_is_excused_no_longer_than_promised(
    run: HistoryBuilder,
) -> None:
    """Nor is it if another fault was near, which suspends the rule `window`."""
    run.add(0.0, "up", "a", worker="a")
    run.call("1", 0.0, grant=0.1, leave=9.0)
    run.loss(1.0, 1.01)
    run.fault(1.0, 1.01)
    run.fault(0.9, 0.95, "c")
    run.call("2", 2.0, queue="q", who="b", grant=2.1, leave=3.0)
    assert run.rules() == []
    run.call("3", 4.0, who="b", grant=4.1, leave=5.0)
    assert run.rules() == ["limit"]


def test_a_holder_that_is_kept_from_registering_is_excused_for_longer(run: HistoryBuilder) -> None:
    """Its own instance was stopped meanwhile, which delays the registration."""
    run.add(0.0, "up", "a", worker="a")
    run.call("1", 0.0, grant=0.1, leave=9.0)
    run.loss(1.0, 1.01)
    run.fault(1.0, 1.01)
    run.fault(2.0, 3.5, "a")
    run.call("3", 4.0, who="b", grant=4.1, leave=5.0)
    assert run.rules() == []
