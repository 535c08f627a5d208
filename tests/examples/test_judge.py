"""The judge of `examples/call_centre.py`, on histories made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from examples.call_centre_day.history import Event, History, Kind, LimitSet, Snapshot
from examples.call_centre_day.judge import check_endings, check_limit, check_order


class HistoryBuilder:
    """Builds a history step by step; every step is one tick later than the one before."""

    def __init__(self, limit: int = 1) -> None:
        self.now = 0
        self.history = History()
        self.limit(limit)

    def tick(self) -> int:
        self.now += 1
        return self.now

    def limit(self, limit: int) -> None:
        self.history.limits.append(LimitSet(limit, self.tick(), self.tick()))

    def enter(self, call: str, on: str = "1") -> None:
        self.history.dispatched[call] = on
        self._step("entering", call)

    def grant(self, call: str, token: int) -> None:
        self._step("granted", call, token=token)

    def leave(self, call: str, detail: str = "") -> None:
        self._step("leaving", call, detail=detail)
        self._step("left", call)

    def abandon(self, call: str) -> None:
        self._step("abandoned", call)

    def snapshot(self, *waiting: str, holding: Sequence[str] = ()) -> None:
        self.history.snapshots.append(Snapshot(self.tick(), self.tick(), waiting, tuple(holding)))

    def kill(self, instance: str) -> None:
        self.history.killed[instance] = self.tick()

    def _step(self, kind: Kind, call: str, token: int = 0, detail: str = "") -> None:
        on = self.history.dispatched[call]
        self.history.events.append(Event(on, kind, self.tick(), call, token, detail=detail))

    @property
    def endings(self) -> list[str]:
        return check_endings(self.history, self.history.dispatched)[0]


def test_faultless_history_passes() -> None:
    """Two instances that take turns, a hang-up and a change of the limit are no violation."""
    run = HistoryBuilder(limit=1)
    run.enter("a", on="1")
    run.grant("a", 1)
    run.enter("b", on="2")
    run.snapshot("b", holding=["a"])
    run.enter("c", on="1")
    run.enter("d", on="2")
    run.snapshot("b", "c", "d", holding=["a"])
    run.abandon("c")
    run.leave("a")
    run.grant("b", 5)
    run.limit(2)
    run.grant("d", 6)
    run.leave("d")
    run.leave("b")
    assert run.endings == []
    assert check_limit(run.history) == []
    assert check_order(run.history) == []


def test_grant_over_the_limit_is_found() -> None:
    """A second grant at limit 1 is reported, with the call that holds the slot."""
    run = HistoryBuilder(limit=1)
    run.enter("a", on="1")
    run.enter("b", on="2")
    run.grant("a", 1)
    run.grant("b", 2)
    run.leave("a")
    run.leave("b")
    assert check_limit(run.history) == [
        "b (token 2) was granted while the limit was 1 and 1 held: a",
    ]


def test_grant_while_paused_is_found() -> None:
    """At limit 0 any grant is a violation."""
    run = HistoryBuilder(limit=0)
    run.enter("a")
    run.grant("a", 1)
    assert check_limit(run.history) == [
        "a (token 1) was granted while the limit was 0 and 0 held: nobody",
    ]


def test_lowered_limit_takes_nothing_from_holders() -> None:
    """Holders may exceed a lowered limit; a grant before enough of them have left is a violation."""
    run = HistoryBuilder(limit=2)
    run.enter("a")
    run.grant("a", 1)
    run.enter("b")
    run.grant("b", 2)
    run.limit(1)
    run.enter("c")
    run.snapshot("c", holding=["a", "b"])
    run.leave("a")
    assert check_limit(run.history) == []
    run.grant("c", 3)
    run.leave("b")
    assert [line.split()[0] for line in check_limit(run.history)] == ["c"]


@pytest.mark.parametrize("seen_waiting", [False, True])
def test_limit_that_might_have_been_in_force_is_allowed(seen_waiting: bool) -> None:
    """A grant recorded after the limit was lowered might be older, unless the call was seen waiting."""
    run = HistoryBuilder(limit=2)
    run.enter("a")
    run.grant("a", 1)
    run.enter("b")
    run.limit(1)
    if seen_waiting:
        run.snapshot("b", holding=["a"])
    run.grant("b", 2)
    run.leave("a")
    assert len(check_limit(run.history)) == seen_waiting


def test_grant_recorded_late_is_no_violation() -> None:
    """Holds whose records overlap are allowed if the release began before the grant was recorded."""
    run = HistoryBuilder(limit=1)
    run.enter("a", on="1")
    run.grant("a", 1)
    run.enter("b", on="2")
    run.history.events.append(Event("1", "leaving", run.tick(), "a"))
    run.grant("b", 2)
    run.history.events.append(Event("1", "left", run.tick(), "a"))
    assert check_limit(run.history) == []


def test_killed_holder_holds_until_it_is_killed() -> None:
    """A grant before the SIGKILL is a violation; after it, the slot might have been reaped."""
    run = HistoryBuilder(limit=1)
    run.enter("a", on="1")
    run.grant("a", 1)
    run.enter("b", on="2")
    early, late = HistoryBuilder(), HistoryBuilder()
    for other in (early, late):
        other.history = replace(run.history, events=[*run.history.events], killed={})
        other.now = run.now
    early.grant("b", 2)
    early.kill("1")
    late.kill("1")
    late.grant("b", 2)
    assert len(check_limit(early.history)) == 1
    assert check_limit(late.history) == []


def test_lost_slot_is_not_counted_as_held() -> None:
    """After a holder has found its slot lost, another call may hold it."""
    run = HistoryBuilder(limit=1)
    run.enter("a", on="1")
    run.grant("a", 1)
    run.enter("b", on="2")
    run.grant("b", 2)
    run.leave("a", detail="lost")
    assert check_limit(run.history) == []


def test_token_given_twice_is_found() -> None:
    """Two grants must not have the same fencing token."""
    run = HistoryBuilder(limit=2)
    for call in ("a", "b"):
        run.enter(call)
        run.grant(call, 4)
    assert check_limit(run.history) == ["b was granted the token 4, which another has"]


def test_overtaking_within_an_instance_is_found() -> None:
    """Within an instance, fencing tokens must be in the order of entering."""
    run = HistoryBuilder(limit=2)
    run.enter("a")
    run.enter("b")
    run.grant("b", 1)
    run.grant("a", 2)
    assert check_order(run.history) == [
        "b of instance 1 (token 1) overtook a of instance 1 (token 2)",
    ]


def test_overtaking_across_instances_is_found() -> None:
    """A call that entered after another was seen in the line must not be granted first."""
    run = HistoryBuilder(limit=1)
    run.enter("a", on="1")
    run.snapshot("a")
    run.enter("b", on="2")
    run.grant("b", 1)
    run.leave("b")
    run.grant("a", 2)
    assert check_order(run.history) == [
        "b of instance 2 (token 1) overtook a of instance 1 (token 2)",
    ]


def test_near_simultaneous_entries_may_be_in_either_order() -> None:
    """Across instances, the call that began to enter first might have arrived second."""
    run = HistoryBuilder(limit=1)
    run.enter("a", on="1")
    run.enter("b", on="2")
    run.snapshot("b", "a")
    run.grant("b", 1)
    run.leave("b")
    run.grant("a", 2)
    assert check_order(run.history) == []


def test_order_seen_in_the_line_must_be_kept() -> None:
    """Two calls that were seen waiting at once must be granted in that order."""
    run = HistoryBuilder(limit=2)
    run.enter("a", on="1")
    run.enter("b", on="2")
    run.snapshot("b", "a")
    run.grant("a", 1)
    run.grant("b", 2)
    assert check_order(run.history) == [
        "a of instance 1 (token 1) overtook b of instance 2 (token 2)",
    ]


def test_overtaking_a_call_that_hangs_up_later_is_found() -> None:
    """A waiter that was overtaken is reported even if it then hangs up."""
    run = HistoryBuilder(limit=1)
    run.enter("a", on="1")
    run.snapshot("a")
    run.enter("b", on="2")
    run.grant("b", 1)
    run.snapshot("a", holding=["b"])
    run.abandon("a")
    assert check_order(run.history) == [
        "b of instance 2 (token 1) overtook a, which was seen waiting afterwards",
    ]


def test_hang_up_during_its_own_grant_is_no_overtaking() -> None:
    """A call that hung up after another's grant might have been granted a slot just before."""
    run = HistoryBuilder(limit=1)
    run.enter("a", on="1")
    run.snapshot("a")
    run.enter("b", on="1")
    run.grant("b", 2)
    run.abandon("a")
    assert check_order(run.history) == []


@pytest.mark.parametrize(
    ("kinds", "ended_once"),
    [
        (["entering", "granted", "leaving", "left"], True),
        (["entering", "abandoned"], True),
        (["entering", "failed"], True),
        ([], False),
        (["entering"], False),
        (["entering", "granted", "leaving"], False),
        (["entering", "abandoned", "abandoned"], False),
        (["entering", "granted", "abandoned"], False),
        (["entering", "granted", "leaving", "left", "left"], False),
        (["entering", "abandoned", "entering", "abandoned"], False),
    ],
)
def test_each_call_must_end_exactly_once(kinds: list[Kind], ended_once: bool) -> None:
    """No ending, two endings and endings of two kinds are violations."""
    history = History(dispatched={"a": "1"})
    history.events += [Event("1", kind, at, "a") for at, kind in enumerate(kinds)]
    violations, cut_off = check_endings(history, ["a"])
    assert (violations == []) is ended_once
    assert cut_off == []


def test_calls_of_a_killed_instance_may_be_cut_off() -> None:
    """The SIGKILL of its instance excuses a call that stops halfway, but not one that ended twice."""
    run = HistoryBuilder()
    run.enter("talking", on="1")
    run.grant("talking", 1)
    run.history.dispatched["on its way"] = "1"
    run.enter("twice", on="1")
    run.abandon("twice")
    run.abandon("twice")
    run.enter("elsewhere", on="2")
    run.kill("1")
    violations, cut_off = check_endings(run.history, run.history.dispatched)
    assert cut_off == ["talking", "on its way"]
    assert [line.split()[0] for line in violations] == ["twice", "elsewhere"]


def test_unknown_call_is_found() -> None:
    """An event of a call that is not of the day is a violation."""
    run = HistoryBuilder()
    run.enter("unknown")
    assert check_endings(run.history, [])[0] == ["unknown is not a call of this day: entering"]
