"""The checker, on histories made by hand: it finds what is wrong, and excuses what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.campaign.checker import RULES, check
from tests.campaign.history import CONDUCTOR, Event, History, Log
from tests.campaign.story import Period, Story, subtract

LEASE = 3.0


class Tale:
    """A history in the making: a queue "q" with limit 1, and a queue "two" with limit 2."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._tokens = 0
        self._numbers = 0

    def say(
        self, at: float, kind: str, who: str = "", queue: str = "", call: str = "", **more: Any
    ) -> None:
        self.events.append(Event(at, kind, who, queue, call, more))

    def call(
        self,
        name: str,
        enter: float,
        *,
        who: str = "a",
        queue: str = "q",
        entered: float | None = None,
        place: int | None = None,
        grant: float | None = None,
        token: int | None = None,
        leave: float | None = None,
        end: float | None = None,
        how: str = "released",
        timeout: float | None = None,
        was: str | None = "waiting",
    ) -> None:
        """One call; what is not given did not happen, but that a leave is an end, too."""
        where = (who, queue, name)
        self.say(enter, "enter", *where, timeout=timeout)
        if entered is not None:
            self.say(entered, "entered", *where, place=place)
            self.say(entered, "fence", who, queue, until=entered + LEASE)
        if grant is not None:
            self._tokens += 1
            self.say(grant, "grant", *where, token=self._tokens if token is None else token)
        elif end is not None and entered is not None:
            self.say(end, "giving_up", *where)
            self.say(end, "given_up", *where, was=was)
        if leave is not None:
            self.say(leave, "leave", *where, lost=False)
            end = leave if end is None else end
        if end is not None:
            self.say(end, "end", *where, how=how)

    def fault(
        self, begin: float, end: float, target: str = "", settle: float = 0.0, name: str = "x"
    ) -> None:
        self._numbers += 1
        self.say(begin, "fault", CONDUCTOR, id=self._numbers, name=name, target=target, settle=settle)
        self.say(end, "fault_end", CONDUCTOR, id=self._numbers, effect=1)

    def loss(self, begin: float, end: float) -> None:
        self._numbers += 1
        self.say(begin, "loss", CONDUCTOR, id=self._numbers)
        self.say(end, "loss_end", CONDUCTOR, id=self._numbers)

    def limit(self, at: float, answered: float, value: int | None, ok: bool = True) -> None:
        self._numbers += 1
        self.say(at, "limit", CONDUCTOR, "q", id=self._numbers, value=value)
        self.say(answered, "limited", CONDUCTOR, "q", id=self._numbers, ok=ok)

    def beat(self, at: float, sent: float, who: str = "a", unknown: int = 0, queue: str = "q") -> None:
        self.say(at, "fence", who, queue, until=sent + LEASE)
        self.say(at, "beat", who, queue, sent=sent, unknown=unknown)

    def history(self) -> History:
        return History.of(LEASE, {"q": 1, "two": 2}, self.events)

    def rules(self) -> list[str]:
        """The rules that are violated, each once."""
        found = {violation.rule for violation in check(self.history()).violations}
        assert found <= set(RULES)
        return sorted(found)


@pytest.fixture
def tale() -> Tale:
    return Tale()


def test_a_good_history_has_no_violation(tale: Tale) -> None:
    """Granted at once, granted after a wait, timed out, refused, cancelled: all as it should be."""
    tale.call("1", 0.0, grant=0.01, leave=1.0)
    tale.call("2", 0.1, who="b", entered=0.11, place=5, grant=1.01, leave=2.0)
    tale.call("3", 0.2, entered=0.21, place=6, end=1.5, how="cancelled")
    tale.call("4", 0.3, entered=0.31, place=7, timeout=0.5, end=0.82, how="timeout")
    tale.call("5", 0.4, timeout=0.0, end=0.41, how="refused")
    tale.call("6", 0.5, queue="two", grant=0.51, leave=0.9)
    verdict = check(tale.history())
    assert verdict.violations == []
    assert verdict.outcomes["released"] == 3


# Endings


def test_a_call_that_never_ends_is_stuck(tale: Tale) -> None:
    """It entered, waits, and nothing more is heard of it."""
    tale.call("1", 0.0, entered=0.1)
    assert "stuck" in tale.rules()


def test_a_killed_process_owes_no_ending(tale: Tale) -> None:
    """Its calls, waiting and holding, end with it."""
    tale.call("1", 0.0, grant=0.1)
    tale.call("2", 0.2, entered=0.3)
    tale.say(0.5, "kill", "a")
    assert tale.rules() == []


def test_a_call_of_a_process_that_came_after_a_killed_one_owes_its_ending(tale: Tale) -> None:
    """The kill of one instance excuses no other."""
    tale.say(0.5, "kill", "a.1")
    tale.call("1", 0.0, who="a.2", entered=0.1)
    assert "stuck" in tale.rules()


@pytest.mark.parametrize("extra", ["end", "grant", "leave", "lost"])
def test_nothing_of_a_call_happens_twice_or_after_its_end(tale: Tale, extra: str) -> None:
    """Two ends, two grants, two leaves; a loss that is told after the end."""
    tale.call("1", 0.0, grant=0.1, leave=0.5)
    more: dict[str, dict[str, Any]] = {
        "end": {"how": "released"},
        "grant": {"token": 9},
        "leave": {},
        "lost": {"reason": "closed", "fence": None},
    }
    tale.say(0.6, extra, "a", "q", "1", **more[extra])
    assert "ending" in tale.rules()


def test_a_release_without_a_grant_is_found(tale: Tale) -> None:
    """How it says that it ended does not fit what happened."""
    tale.call("1", 0.0, end=0.5, how="released")
    assert tale.rules() == ["ending"]


def test_a_timeout_after_a_grant_is_found(tale: Tale) -> None:
    """Who was granted a slot cannot time out any more."""
    tale.call("1", 0.0, grant=0.1, leave=0.2, end=0.5, how="timeout", timeout=0.4)
    assert tale.rules() == ["ending"]


def test_a_call_that_enters_twice_is_found(tale: Tale) -> None:
    """It has two places in the line."""
    tale.call("1", 0.0, entered=0.1, place=5, grant=0.15, leave=0.3)
    tale.say(0.12, "entered", "a", "q", "1", place=7)
    assert tale.rules() == ["ending"]


@pytest.mark.parametrize(("how", "timeout"), [("timeout", None), ("refused", None), ("refused", 9.0)])
def test_who_waits_for_ever_neither_times_out_nor_is_refused(
    tale: Tale, how: str, timeout: float | None
) -> None:
    """Nor is refused who would have waited for a while."""
    tale.call("0", 0.0, who="b", grant=0.01, leave=9.0)
    tale.call("1", 0.1, entered=0.2, timeout=timeout, end=3.0, how=how)
    assert tale.rules() == ["ending"]


def test_an_ending_out_of_nothing_is_found(tale: Tale) -> None:
    """A call ends that nobody made."""
    tale.say(1.0, "end", "a", "q", "ghost", how="released")
    assert tale.rules() == ["ending"]


# Tokens


def test_two_grants_with_one_token_are_found(tale: Tale) -> None:
    """A fencing token is one grant's."""
    tale.call("1", 0.0, grant=0.1, token=7, leave=0.2)
    tale.call("2", 0.3, grant=0.4, token=7, leave=0.5)
    assert "token" in tale.rules()


def test_a_token_smaller_than_an_earlier_one_is_found(tale: Tale) -> None:
    """Granted before the other entered, but with the greater token."""
    tale.call("1", 0.0, grant=0.1, token=8, leave=0.2)
    tale.call("2", 0.3, grant=0.4, token=7, leave=0.5)
    assert "token" in tale.rules()


def test_a_token_of_another_time_is_found(tale: Tale) -> None:
    """With the offset of the two clocks, a token says when it was given: not before its call."""
    tale.say(0.0, "clock", CONDUCTOR, offset=100.0, error=0.001)
    tale.call("1", 0.0, grant=0.01, token=100_005_000, leave=1.0)
    assert tale.rules() == []
    tale.call("2", 8.0, grant=8.01, token=100_006_000, leave=9.0)
    assert tale.rules() == ["token"]


def test_tokens_of_grants_that_overlap_may_come_in_either_order(tale: Tale) -> None:
    """Who is told first need not have been granted first."""
    tale.call("1", 0.0, queue="two", grant=0.3, token=8, leave=0.5)
    tale.call("2", 0.1, queue="two", grant=0.4, token=7, leave=0.6)
    assert tale.rules() == []


def test_tokens_of_two_queues_are_not_compared(tale: Tale) -> None:
    """Each queue has its own."""
    tale.call("1", 0.0, grant=0.1, token=8, leave=0.2)
    tale.call("2", 0.3, queue="two", grant=0.4, token=7, leave=0.5)
    assert tale.rules() == []


# Limit


def test_two_holders_where_one_may_hold_are_found(tale: Tale) -> None:
    """They overlap for a moment, in two processes."""
    tale.call("1", 0.0, grant=0.1, leave=1.0)
    tale.call("2", 0.5, who="b", grant=0.9, leave=2.0)
    assert tale.rules() == ["limit"]


def test_a_grant_right_after_a_leave_is_allowed(tale: Tale) -> None:
    """The leave was begun before the grant was heard of."""
    tale.call("1", 0.0, grant=0.1, leave=0.89)
    tale.call("2", 0.5, who="b", entered=0.51, grant=0.9, leave=2.0)
    assert tale.rules() == []


def test_a_holder_counts_until_its_slot_can_be_lost(tale: Tale) -> None:
    """From the fence on its slot.lost is true, even if it looks only later."""
    tale.fault(0.2, 8.0, "a")
    tale.call("1", 0.0, grant=0.1, leave=8.0)
    tale.say(7.9, "lost", "a", "q", "1", reason="lapsed", fence=3.0)
    tale.call("2", 2.0, who="b", entered=2.01, grant=3.5, leave=4.0)
    assert tale.rules() == []


def test_a_grant_before_the_holder_could_know_is_found(tale: Tale) -> None:
    """The next one is in while the first one's slot.lost is still false."""
    tale.fault(0.2, 8.0, "a")
    tale.call("1", 0.0, grant=0.1, leave=8.0)
    tale.say(7.9, "lost", "a", "q", "1", reason="lapsed", fence=3.0)
    tale.call("2", 2.0, who="b", entered=2.01, grant=2.5, leave=4.0)
    assert tale.rules() == ["limit"]


def test_a_killed_holder_holds_no_longer(tale: Tale) -> None:
    """The slot passes on when it is taken back."""
    tale.call("1", 0.0, grant=0.1)
    tale.say(0.5, "kill", "a")
    tale.fault(0.5, 0.5, "a", settle=LEASE)
    tale.call("2", 0.2, who="b", entered=0.3, grant=3.4, leave=4.0)
    assert tale.rules() == []


def test_an_evicted_holder_holds_no_longer(tale: Tale) -> None:
    """Its slot is taken back when somebody says so, and it hears of it a little later."""
    tale.call("1", 0.0, grant=0.1, leave=2.0)
    tale.say(0.5, "evict", "b", "q", "1")
    tale.say(0.7, "lost", "a", "q", "1", reason="evicted", fence=None)
    tale.call("2", 0.2, who="b", entered=0.3, grant=0.6, leave=1.0)
    assert tale.rules() == []


@pytest.mark.parametrize(("found", "trouble"), [(0, False), (0, True), (1, False)])
def test_a_holder_that_was_evicted_in_vain_holds_on(tale: Tale, found: int, trouble: bool) -> None:
    """The eviction found nobody: no reason for a second holder, unless that answer may be wrong."""
    tale.call("1", 0.0, grant=0.1, leave=4.5)
    tale.say(0.5, "evict", "b", "q", "1")
    tale.say(0.6, "evicted", "b", "q", "1", count=found)
    tale.call("2", 1.0, who="b", grant=1.1, leave=4.0)
    if trouble:
        tale.fault(0.4, 0.7, "b")
    assert tale.rules() == (["limit"] if not found and not trouble else [])


def test_a_raised_limit_holds_from_when_it_was_said(tale: Tale) -> None:
    """Between set_limit and its answer either number can be in force."""
    tale.call("1", 0.0, grant=0.1, leave=2.0)
    tale.limit(0.5, 0.8, 2)
    tale.call("2", 0.2, who="b", entered=0.3, grant=0.6, leave=1.0)
    assert tale.rules() == []


def test_a_grant_over_a_limit_that_was_lowered_before_is_found(tale: Tale) -> None:
    """Raised, lowered again, and only then granted."""
    tale.call("1", 0.0, grant=0.1, leave=3.0)
    tale.limit(0.5, 0.6, 2)
    tale.limit(0.7, 0.8, None)
    tale.call("2", 0.9, who="b", grant=1.0, leave=2.0)
    assert tale.rules() == ["limit"]


def test_lowering_takes_nothing_from_holders(tale: Tale) -> None:
    """Two hold when the limit becomes one; both may stay."""
    tale.limit(0.0, 0.1, 2)
    tale.call("1", 0.2, grant=0.3, leave=2.0)
    tale.call("2", 0.2, who="b", grant=0.4, leave=2.0)
    tale.limit(0.5, 0.6, 1)
    assert tale.rules() == []


def test_an_override_that_failed_may_be_in_force(tale: Tale) -> None:
    """Its answer was lost: it may have been carried out."""
    tale.call("1", 0.0, grant=0.1, leave=3.0)
    tale.limit(0.5, 0.6, 2, ok=False)
    tale.call("2", 0.9, who="b", grant=1.0, leave=2.0)
    assert tale.rules() == []


def test_an_override_that_failed_is_over_with_the_next_that_did_not(tale: Tale) -> None:
    """What was said before it comes before it, or never: more than one at a time are too many again."""
    tale.limit(0.0, 0.1, 5, ok=False)
    tale.limit(4.0, 4.1, None)
    tale.call("1", 5.0, grant=5.1, leave=7.0)
    tale.call("2", 5.0, who="b", grant=5.2, leave=7.0)
    assert tale.rules() == ["limit"]


def test_a_pause_that_failed_is_over_with_the_next_that_did_not(tale: Tale) -> None:
    """A slot that stands free later is not free because the queue may be paused."""
    tale.fault(0.0, 1.0, settle=2.0)
    tale.limit(0.5, 0.6, 0, ok=False)
    tale.limit(4.0, 4.1, None)
    tale.call("1", 5.0, grant=5.1, leave=6.0)
    tale.call("2", 5.2, who="b", entered=5.3, grant=7.0, leave=8.0)
    assert tale.rules() == ["standstill"]


def test_a_pause_that_failed_may_be_carried_out_when_the_server_is_back(tale: Tale) -> None:
    """The answer came to nobody, what was said lay in the server's socket."""
    tale.fault(0.0, 5.0, settle=1.0)
    tale.limit(0.5, 0.6, 0, ok=False)
    tale.limit(4.0, 4.1, None)
    tale.call("1", 6.0, grant=6.1, leave=7.0)
    tale.call("2", 6.2, who="b", entered=6.3, grant=8.0, leave=9.0)
    assert tale.rules() == []


def test_an_ended_override_comes_back_only_if_a_loss_was_near(tale: Tale) -> None:
    """An instance may register again what it last heard of; much later nobody knows it any more."""
    tale.limit(0.0, 0.1, 2)
    tale.limit(0.2, 0.3, None)
    tale.loss(1.0, 1.1)
    tale.call("1", 2.0, grant=2.1, leave=4.0)
    tale.call("2", 2.5, who="b", grant=2.6, leave=4.0)
    assert tale.rules() == []
    tale.limit(4.5, 4.6, None)
    tale.call("3", 5.0, grant=5.1, leave=6.0)
    tale.call("4", 5.0, who="b", grant=5.2, leave=6.0)
    assert tale.rules() == ["limit"]


def test_an_overshoot_right_after_a_loss_is_excused_and_measured(tale: Tale) -> None:
    """An instance that had nothing there is granted a slot before the holder has registered again."""
    tale.call("1", 0.0, grant=0.1, leave=3.0)
    tale.beat(0.9, 0.89)
    tale.loss(1.0, 1.01)
    tale.fault(1.0, 1.01)
    tale.call("2", 1.1, who="b", grant=1.2, leave=2.0)
    tale.beat(1.5, 1.49, unknown=1)
    tale.say(1.52, "restored", "a", "q")
    verdict = check(tale.history())
    assert verdict.violations == []
    assert verdict.overshoots == [pytest.approx(0.8)]
    assert verdict.overshot_after == [pytest.approx(0.19)]


def test_an_overshoot_after_the_holder_has_registered_again_is_found(tale: Tale) -> None:
    """Redis knew of it by then."""
    tale.call("1", 0.0, grant=0.1, leave=3.0)
    tale.loss(1.0, 1.01)
    tale.fault(1.0, 1.01)
    tale.beat(1.5, 1.49, unknown=1)
    tale.say(1.52, "restored", "a", "q")
    tale.call("2", 1.6, who="b", grant=1.7, leave=2.0)
    assert tale.rules() == ["limit"]


def test_a_holder_that_never_registers_again_is_excused_no_longer_than_promised(tale: Tale) -> None:
    """Nor if another fault was near, which keeps the rule `window` from judging."""
    tale.say(0.0, "up", "a", worker="a")
    tale.call("1", 0.0, grant=0.1, leave=9.0)
    tale.loss(1.0, 1.01)
    tale.fault(1.0, 1.01)
    tale.fault(0.9, 0.95, "c")
    tale.call("2", 2.0, queue="q", who="b", grant=2.1, leave=3.0)
    assert tale.rules() == []
    tale.call("3", 4.0, who="b", grant=4.1, leave=5.0)
    assert tale.rules() == ["limit"]


def test_a_holder_that_is_kept_from_registering_is_excused_for_longer(tale: Tale) -> None:
    """Its instance was stopped meanwhile; what troubles others is no reason."""
    tale.say(0.0, "up", "a", worker="a")
    tale.call("1", 0.0, grant=0.1, leave=9.0)
    tale.loss(1.0, 1.01)
    tale.fault(1.0, 1.01)
    tale.fault(2.0, 3.5, "a")
    tale.call("3", 4.0, who="b", grant=4.1, leave=5.0)
    assert tale.rules() == []


# Order


def test_an_overtaken_waiter_is_found_by_the_times(tale: Tale) -> None:
    """It had its answer before the other entered, and is granted after."""
    tale.call("0", 0.0, grant=0.1, leave=1.0)
    tale.call("1", 0.2, entered=0.3, grant=2.1, token=3, leave=3.0)
    tale.call("2", 0.4, who="b", entered=0.5, grant=1.1, token=2, leave=2.0)
    assert tale.rules() == ["fifo"]


def test_an_overtaken_waiter_is_found_by_the_places(tale: Tale) -> None:
    """They entered at the same time, and Redis put the other behind it."""
    tale.call("0", 0.0, grant=0.1, leave=1.0)
    tale.call("1", 0.2, entered=0.5, place=10, grant=2.1, token=3, leave=3.0)
    tale.call("2", 0.2, who="b", entered=0.5, place=11, grant=1.1, token=2, leave=2.0)
    assert tale.rules() == ["fifo"]


def test_of_two_that_enter_at_the_same_time_either_may_be_first(tale: Tale) -> None:
    """Their places are not known."""
    tale.call("0", 0.0, grant=0.1, leave=1.0)
    tale.call("1", 0.2, entered=0.5, grant=2.1, token=3, leave=3.0)
    tale.call("2", 0.3, who="b", entered=0.4, grant=1.1, token=2, leave=2.0)
    assert tale.rules() == []


def test_a_newcomer_that_takes_a_free_slot_past_a_waiter_is_found(tale: Tale) -> None:
    """Not even a slot that just came free is a newcomer's while somebody waits."""
    tale.call("0", 0.0, grant=0.1, leave=1.0)
    tale.call("1", 0.2, entered=0.3, grant=2.1, token=3, leave=3.0)
    tale.call("2", 1.0, who="b", grant=1.05, token=2, leave=2.0)
    assert tale.rules() == ["fifo"]


def test_a_waiter_that_gave_up_after_it_was_overtaken_is_found(tale: Tale) -> None:
    """Redis says that it still waited when it left."""
    tale.call("0", 0.0, grant=0.1, leave=1.0)
    tale.call("1", 0.2, entered=0.3, end=1.5, how="cancelled", was="waiting")
    tale.call("2", 0.4, who="b", entered=0.5, grant=1.1, leave=2.0)
    assert tale.rules() == ["fifo"]


def test_a_waiter_that_gave_up_with_a_grant_on_its_way_was_not_overtaken(tale: Tale) -> None:
    """Redis says that it held a slot when it left."""
    tale.call("0", 0.0, queue="two", grant=0.1, leave=1.0)
    tale.call("1", 0.2, queue="two", entered=0.3, end=1.5, how="cancelled", was="holding")
    tale.call("2", 0.4, queue="two", who="b", entered=0.5, grant=1.1, leave=2.0)
    tale.fault(0.0, 2.0)
    assert tale.rules() == []


def test_a_waiter_whose_eviction_was_lost_with_the_data_may_come_back(tale: Tale) -> None:
    """Taken out of the line, never told, and registered again: it was passed while it was out."""
    tale.fault(0.0, 3.0)
    tale.call("0", 0.0, who="b", grant=0.1, leave=1.0)
    tale.call("1", 0.2, entered=0.3, grant=2.1, token=3, leave=3.0)
    tale.say(0.9, "evict", "b", "q", "1")
    tale.call("2", 0.4, who="b", entered=0.5, grant=1.1, token=2, leave=2.0)
    assert tale.rules() == []


def test_a_waiter_that_gave_up_before_was_not_overtaken(tale: Tale) -> None:
    """It had left the line when the other was granted."""
    tale.call("0", 0.0, grant=0.1, leave=1.0)
    tale.call("1", 0.2, entered=0.3, end=0.9, how="cancelled")
    tale.call("2", 0.4, who="b", entered=0.5, grant=1.1, leave=2.0)
    assert tale.rules() == []


def test_a_waiter_whose_lease_had_lapsed_may_be_overtaken(tale: Tale) -> None:
    """Its instance was stopped for longer than the lease, and has not registered again."""
    tale.fault(0.5, 5.0, "a", settle=LEASE)
    tale.call("0", 0.0, who="b", grant=0.1, leave=4.0)
    tale.call("1", 0.2, entered=0.3, grant=6.1, token=3, leave=7.0)
    tale.call("2", 0.4, who="b", entered=0.45, grant=4.1, token=2, leave=6.0)
    tale.beat(5.0, 4.9, unknown=1)
    tale.say(5.1, "restored", "a", "q")
    verdict = check(tale.history())
    assert verdict.violations == []
    assert verdict.overtaken == 1


def test_a_waiter_whose_entering_was_answered_after_its_lease_may_be_overtaken(tale: Tale) -> None:
    """Its loop stood still: when it heard that it waits, it might have been reaped already."""
    tale.fault(0.1, 5.0, "a", settle=LEASE)
    tale.call("0", 0.0, who="b", grant=0.1, leave=5.2)
    tale.say(0.0, "enter", "a", "q", "1", timeout=None)
    tale.say(5.0, "fence", "a", "q", until=3.0)
    tale.say(5.0, "entered", "a", "q", "1", place=None)
    tale.beat(5.05, 4.95)  # sent before it was known to wait, so it does not name it
    tale.call("2", 5.1, who="b", entered=5.15, grant=5.25, token=2, leave=5.5)
    tale.beat(5.3, 5.05, unknown=1)
    tale.say(5.4, "restored", "a", "q")
    tale.say(5.6, "grant", "a", "q", "1", token=3)
    tale.say(6.0, "leave", "a", "q", "1", lost=False)
    tale.say(6.0, "end", "a", "q", "1", how="released")
    assert tale.rules() == []


def test_a_waiter_whose_entering_was_answered_after_a_heartbeat_may_be_overtaken(tale: Tale) -> None:
    """As before, but the lease was renewed just before it heard: Redis' time tells that it lapsed."""
    tale.say(0.0, "clock", CONDUCTOR, offset=100.0, error=0.001)
    tale.fault(0.1, 5.0, "a", settle=LEASE)
    tale.call("0", 0.0, who="b", grant=0.1, token=100_050_000, leave=5.2)
    tale.say(0.0, "fence", "a", "q", until=3.0)
    tale.say(0.05, "enter", "a", "q", "1", timeout=None)
    tale.beat(5.05, 4.95, unknown=1)  # sent before it was known to wait, so it does not name it
    tale.say(5.05, "fence", "a", "q", until=7.95)
    tale.say(5.06, "entered", "a", "q", "1", place=100_060_000)
    tale.say(5.1, "restored", "a", "q")  # of another
    tale.call("2", 5.1, who="b", entered=5.15, grant=5.25, token=105_200_000, leave=5.5)
    tale.beat(5.3, 5.1, unknown=1)
    tale.say(5.4, "restored", "a", "q")
    tale.say(5.6, "grant", "a", "q", "1", token=105_550_000)
    tale.say(6.0, "leave", "a", "q", "1", lost=False)
    tale.say(6.0, "end", "a", "q", "1", how="released")
    assert tale.rules() == []


def test_a_waiter_whose_unheard_grant_was_lost_with_the_data_was_not_overtaken(tale: Tale) -> None:
    """Granted first, and evicted; it heard of neither before Redis lost its data, and waits again."""
    tale.fault(0.0, 9.0)
    tale.call("1", 0.2, queue="two", entered=0.3, grant=2.1, token=3, leave=3.0)
    tale.call("2", 0.4, queue="two", who="b", grant=0.5, token=2, leave=2.0)
    tale.say(0.6, "evict", "b", "two", "1")
    tale.loss(0.7, 0.71)
    tale.beat(0.8, 0.79, unknown=1, queue="two")
    tale.say(0.82, "restored", "a", "two")
    assert tale.rules() == []


def test_a_waiter_that_has_registered_again_may_not_be_overtaken(tale: Tale) -> None:
    """Back in the line, it stands where it stood."""
    tale.fault(0.5, 5.0, "a", settle=LEASE)
    tale.call("0", 0.0, who="b", grant=0.1, leave=5.5)
    tale.call("1", 0.2, entered=0.3, grant=7.1, token=3, leave=8.0)
    tale.call("2", 5.2, who="b", entered=5.3, grant=5.6, token=2, leave=7.0)
    tale.beat(5.0, 4.9, unknown=1)
    tale.say(5.1, "restored", "a", "q")
    tale.beat(5.7, 5.65)
    assert tale.rules() == ["fifo"]


def test_a_waiter_may_be_overtaken_between_a_loss_and_its_registration(tale: Tale) -> None:
    """An instance that had nothing there does not know of those who wait."""
    tale.call("0", 0.0, grant=0.1, leave=3.0)
    tale.call("1", 0.2, entered=0.3, grant=3.1, token=3, leave=4.0)
    tale.loss(1.0, 1.01)
    tale.fault(1.0, 1.01, settle=2.5)
    tale.call("2", 1.1, who="b", grant=1.2, token=2, leave=2.0)
    tale.beat(1.5, 1.49, unknown=2)
    tale.say(1.52, "restored", "a", "q")
    verdict = check(tale.history())
    assert verdict.violations == []
    assert verdict.overtaken == 1


def test_a_waiter_that_never_registers_again_may_be_overtaken_no_longer_than_promised(
    tale: Tale,
) -> None:
    """Nor does the lease that lapses then excuse for ever that it is passed."""
    tale.call("0", 0.0, who="c", grant=0.01, leave=6.0)
    tale.call("1", 0.1, entered=0.2, grant=9.01, token=9, leave=9.5)
    tale.loss(1.0, 1.01)
    tale.fault(1.0, 1.01)
    tale.call("2", 5.6, who="b", entered=5.7, grant=6.01, token=5, leave=9.0)
    assert tale.rules() == ["fifo", "window"]


# Standstill


def test_a_free_slot_that_stays_free_while_somebody_waits_is_found(tale: Tale) -> None:
    """A second of nothing, and no fault."""
    tale.call("1", 0.0, grant=0.1, leave=1.0)
    tale.call("2", 0.2, who="b", entered=0.3, grant=2.0, leave=3.0)
    assert tale.rules() == ["standstill"]


def test_a_slot_that_was_lost_for_its_holder_alone_is_not_free(tale: Tale) -> None:
    """Its lease lapsed by its own reckoning, Redis renewed it: it is free when the body is over."""
    tale.fault(0.2, 0.9, "a")
    tale.call("1", 0.0, grant=0.1, leave=3.0)
    tale.say(0.9, "lost", "a", "q", "1", reason="lapsed", fence=0.9)
    tale.call("2", 0.8, who="b", entered=0.85, grant=3.05, leave=4.0)
    assert tale.rules() == []


def test_a_second_slot_that_stays_free_is_found(tale: Tale) -> None:
    """Two may hold, one does, one waits."""
    tale.call("1", 0.0, queue="two", grant=0.1, leave=2.0)
    tale.call("2", 0.2, queue="two", who="b", entered=0.3, grant=2.1, leave=3.0)
    assert tale.rules() == ["standstill"]


def test_a_free_slot_is_excused_while_a_fault_is_felt(tale: Tale) -> None:
    """The fault, and its promised time after it, cover the standstill."""
    tale.call("1", 0.0, grant=0.1, leave=1.0)
    tale.call("2", 0.2, who="b", entered=0.3, grant=2.0, leave=3.0)
    tale.fault(0.9, 1.2, "a", settle=0.75)
    assert tale.rules() == []


def test_a_free_slot_is_not_excused_longer_than_promised(tale: Tale) -> None:
    """The fault was over, and the rest of the time too long."""
    tale.call("1", 0.0, grant=0.1, leave=1.0)
    tale.call("2", 0.2, who="b", entered=0.3, grant=2.0, leave=3.0)
    tale.fault(0.9, 1.2, "a", settle=0.5)
    assert tale.rules() == ["standstill"]


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
    tale: Tale, name: str, target: str, rules: list[str]
) -> None:
    """The link was not up for a second, so it does not connect again at once."""
    tale.call("1", 0.0, grant=0.1, leave=1.0)
    tale.call("2", 0.2, who="b", entered=0.3, grant=2.0, leave=3.0)
    for worker in "abc":
        tale.say(0.0, "up", worker, worker=worker)
    if name:
        tale.fault(0.2, 0.3, target, name=name)
    tale.fault(1.0, 1.1, "b", settle=0.3, name="cut")
    assert tale.rules() == rules


def test_a_machine_that_stood_still_excuses_as_much(tale: Tale) -> None:
    """A loop came late by 0.4 s at that time; it takes three such delays to explain a second."""
    tale.call("1", 0.0, grant=0.1, leave=1.0)
    tale.call("2", 0.2, who="b", entered=0.3, grant=2.0, leave=3.0)
    tale.say(1.6, "lag", "b", seconds=0.4)
    assert tale.rules() == []
    tale.fault(1.1, 1.25, "b", name="block")
    assert tale.rules() == ["standstill"], "that loop stood still because of a fault"


def test_who_is_refused_a_slot_that_is_free_is_found(tale: Tale) -> None:
    """It would not have waited, and nobody was there; a moment after another, it is not known."""
    tale.call("0", 0.0, who="b", grant=0.01, leave=1.0)
    tale.call("1", 1.05, timeout=0.0, end=1.1, how="refused")
    assert tale.rules() == []
    tale.call("2", 2.0, timeout=0.0, end=2.1, how="refused")
    assert tale.rules() == ["standstill"]
    tale.fault(1.9, 1.95, "b", settle=0.2)
    assert tale.rules() == []


@pytest.mark.parametrize("seconds", [0.5, 0.01])
def test_a_connection_given_up_excuses_only_on_a_busy_machine(tale: Tale, seconds: float) -> None:
    """A second of standstill after a timeout: the machine stood still before it, or it did not."""
    tale.say(0.0, "up", "b.1", worker="b")
    tale.call("1", 0.0, grant=0.1, leave=1.0)
    tale.call("2", 0.2, who="b.1", entered=0.3, grant=2.0, leave=3.0)
    tale.say(0.9, "disrupted", "b.1", reason="timeout")
    tale.say(0.8, "lag", CONDUCTOR, seconds=seconds)
    assert tale.rules() == ([] if seconds > LEASE / 12 else ["standstill"])


def test_a_paused_queue_does_not_stand_still(tale: Tale) -> None:
    """At limit 0 nobody is granted anything."""
    tale.limit(0.0, 0.1, 0)
    tale.call("1", 0.2, who="b", entered=0.3, grant=2.02, leave=3.0)
    tale.limit(2.0, 2.01, None)
    assert tale.rules() == []


# Causes


def test_a_slot_lost_out_of_nothing_is_found(tale: Tale) -> None:
    """Its lease lapsed, and there was no fault and no delay."""
    tale.call("1", 0.0, grant=0.1, leave=5.0)
    tale.say(4.0, "lost", "a", "q", "1", reason="lapsed", fence=3.9)
    assert tale.rules() == ["cause"]


@pytest.mark.parametrize("seconds", [0.3, 0.6])
def test_a_slot_is_not_lost_because_the_machine_was_a_little_late(tale: Tale, seconds: float) -> None:
    """Three delays of a tenth of the lease leave time for a renewal; of a fifth they may not."""
    tale.call("1", 0.0, grant=0.1, leave=5.0)
    tale.say(4.0, "lost", "a", "q", "1", reason="reaped", fence=None)
    tale.say(3.0, "lag", CONDUCTOR, seconds=seconds)
    assert tale.rules() == (["cause"] if seconds < LEASE / 6 else [])


def test_a_slot_lost_because_of_a_fault_elsewhere_is_found(tale: Tale) -> None:
    """What troubles one worker is no reason for another to lose its slots."""
    tale.say(0.0, "up", "a", worker="a")
    tale.call("1", 0.0, grant=0.1, leave=5.0)
    tale.say(4.0, "lost", "a", "q", "1", reason="reaped", fence=None)
    tale.fault(1.0, 4.0, "b")
    assert tale.rules() == ["cause"]


def test_a_slot_lost_in_a_fault_is_explained(tale: Tale) -> None:
    """Its worker was stopped."""
    tale.say(0.0, "up", "a.1", worker="a")
    tale.call("1", 0.0, who="a.1", grant=0.1, leave=5.0)
    tale.say(4.0, "lost", "a.1", "q", "1", reason="lapsed", fence=3.9)
    tale.fault(1.0, 4.0, "a")
    assert tale.rules() == []


def test_a_slot_lost_to_a_closing_is_found(tale: Tale) -> None:
    """Nobody closes before all calls are over, whatever else happens."""
    tale.fault(0.0, 9.0)
    tale.call("1", 0.0, grant=0.1, leave=5.0)
    tale.say(4.0, "lost", "a", "q", "1", reason="closed", fence=None)
    assert tale.rules() == ["cause"]


def test_an_eviction_that_nobody_said_is_found(tale: Tale) -> None:
    """Of a waiter, and of a holder."""
    tale.call("1", 0.0, grant=0.1, leave=5.0)
    tale.say(4.0, "lost", "a", "q", "1", reason="evicted", fence=None)
    tale.call("2", 0.2, entered=0.3, end=1.0, how="evicted")
    assert len(check(tale.history()).of("cause")) == 2


def test_a_call_that_fails_out_of_nothing_is_found(tale: Tale) -> None:
    """BackendUnavailableError, although Redis was there."""
    tale.call("1", 0.0, end=1.0, how="failed")
    assert tale.rules() == ["cause"]


# Timing


def test_a_timeout_that_comes_too_early_is_found(tale: Tale) -> None:
    """After 1 s instead of 2."""
    tale.call("0", 0.0, who="b", grant=0.01, leave=3.0)
    tale.call("1", 0.1, entered=0.2, timeout=2.0, end=1.1, how="timeout")
    assert tale.rules() == ["timing"]


def test_a_timeout_that_comes_too_late_is_found(tale: Tale) -> None:
    """After 3 s instead of 2; a loop that stood still meanwhile explains it."""
    tale.call("0", 0.0, who="b", grant=0.01, leave=4.0)
    tale.call("1", 0.1, entered=0.2, timeout=2.0, end=3.2, how="timeout")
    assert tale.rules() == ["timing"]
    tale.say(3.2, "lag", "a", seconds=1.0)
    assert tale.rules() == []


def test_a_grant_long_after_the_timeout_is_found(tale: Tale) -> None:
    """It should have given up before."""
    tale.call("0", 0.0, who="b", grant=0.01, leave=4.0)
    tale.call("1", 0.1, entered=0.2, timeout=2.0, grant=4.01, leave=5.0)
    assert tale.rules() == ["timing"]


# What is left, and windows


def test_what_is_left_over_is_a_violation(tale: Tale) -> None:
    """Whatever the conductor found."""
    tale.say(9.0, "left_over", CONDUCTOR, what="a key has no expiry")
    assert tale.rules() == ["left_over"]


def test_a_registration_that_comes_too_late_is_found(tale: Tale) -> None:
    """A third of the lease after the loss it should be known again; it took two."""
    tale.call("0", 0.0, who="b", grant=0.01, leave=9.0)
    tale.call("1", 0.1, entered=0.2, end=9.0, how="cancelled")
    tale.loss(1.0, 1.01)
    tale.fault(1.0, 1.01)
    tale.beat(3.0, 2.99, unknown=1)
    tale.say(3.01, "restored", "a", "q")
    assert tale.rules() == ["window"]


def test_a_registration_in_time_is_measured(tale: Tale) -> None:
    """A heartbeat later it is known again."""
    tale.call("0", 0.0, who="b", grant=0.01, leave=9.0)
    tale.call("1", 0.1, entered=0.2, end=9.0, how="cancelled")
    tale.loss(1.0, 1.01)
    tale.fault(1.0, 1.01)
    tale.beat(1.8, 1.79, unknown=1)
    tale.say(1.81, "restored", "a", "q")
    verdict = check(tale.history())
    assert verdict.violations == []
    assert verdict.windows == [pytest.approx(0.8)]


# The history itself


def test_a_history_survives_being_saved(tale: Tale, tmp_path: Path) -> None:
    """What is loaded is what was saved."""
    tale.call("1", 0.0, grant=0.1, leave=1.0)
    tale.history().save(tmp_path / "history")
    assert History.load(tmp_path / "history") == tale.history()


def test_half_a_line_of_a_killed_process_is_left_out(tmp_path: Path) -> None:
    """All that it wrote wholly counts."""
    file = tmp_path / "a.log"
    log = Log(file, "a")
    log("enter", queue="q", call="1", timeout=None)
    log.close()
    with file.open("ab") as raw:
        raw.write(b'{"at": 12, "kind"')
    assert [event.call for event in History.read(LEASE, {"q": 1}, [file]).events] == ["1"]


def test_redis_clock_narrows_the_moment_of_a_grant(tale: Tale) -> None:
    """A token is Redis' time; with the offset of the two clocks it says when the slot was given."""
    tale.say(0.0, "clock", CONDUCTOR, offset=100.0, error=0.001)
    tale.call("1", 0.0, entered=0.1, grant=5.0, token=102_000_000, leave=6.0)
    (passage,) = Story(tale.history()).passages.values()
    assert [*passage.taken] == pytest.approx([1.999, 2.001])


def test_what_is_left_of_a_period_outside_of_others() -> None:
    """In the middle, over an end, not at all."""
    assert subtract(Period(0, 10), [Period(2, 3), Period(9, 12)]) == [(0, 2), (3, 9)]
    assert subtract(Period(0, 10), [Period(-1, 11)]) == []
