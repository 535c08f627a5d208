"""The core alone: events in, commands and verdicts out. Redis is what the replies say."""

from __future__ import annotations

import math
from typing import Any

import pytest

from genesis.backends.protocol import (
    CallRef,
    Disrupted,
    Heartbeat,
    LeaveResult,
    LimitDisagreement,
    OverrideChanged,
    State,
)
from genesis.backends.redis.members import make_member
from genesis.backends.redis.ticket import LocalTicket, Stage
from tests.protocol.core_line import ERROR, LEASE, NUMBERS, Line, granted, rows_of


@pytest.fixture
def line() -> Line:
    return Line().connected()


def test_the_first_call_enters_with_a_sync() -> None:
    line = Line()
    line.core.connected(0)
    assert line.commands() == []  # nothing is known of this queue
    ticket = line.enter("x")
    sync = line.command("sync")
    assert rows_of(sync) == [(b"x", b"e", b"0")]
    line.synced(sync, [1, 10])
    assert line.verdicts() == [("granted", ticket, None)]
    assert line.core.lease_deadline == LEASE


def test_a_lost_reply_to_enter_is_asked_for_by_the_next_sync(line: Line) -> None:
    ticket = line.enter("x")
    line.command("enter")
    line.core.disconnected()
    line.core.connected(1)
    sync = line.command("sync")
    assert rows_of(sync) == [(b"x", b"e", b"0")]
    line.synced(sync, [1, 10])  # Redis had granted it
    assert line.verdicts() == [("granted", ticket, None)]


def test_no_command_is_sent_twice(line: Line) -> None:
    line.enter("x")
    line.commands()
    line.core.disconnected()
    line.core.connected(1)
    assert [command.name for command in line.commands()] == ["sync"]


def test_without_a_connection_enter_and_leave_are_only_noted() -> None:
    line = Line()
    stays, leaves = line.enter("stays"), line.enter("leaves")
    line.core.leave(leaves, 0)
    assert line.verdicts() == [("left", leaves, LeaveResult(None), True)]
    line.core.connected(0)
    assert rows_of(line.command("sync")) == [(b"stays", b"e", b"0")]
    assert stays.wanted


def test_a_lapsed_lease_ends_holders_and_asks_for_waiters_again(line: Line) -> None:
    held, waits = line.holding(), line.waiting()
    line.core.tick(LEASE)
    assert line.verdicts() == [("lost", held, "lapsed")]
    sync = line.command("sync")
    assert rows_of(sync) == [(b"waits", b"w", b"20")]
    line.synced(sync, [2, 20], now=LEASE)
    assert line.verdicts() == []
    assert waits.stage is Stage.WAITING


def test_a_lease_that_lapses_while_redis_rejects_everything_ends_waiters(line: Line) -> None:
    """The connection is up, but a sync would not get their places back."""
    waits = line.waiting()
    line.core.tick(5)
    line.core.replied(line.command("beat"), ERROR, 5)
    line.core.tick(6)
    line.core.replied(line.command("sync"), ERROR, 6)
    line.verdicts()
    line.core.tick(LEASE)
    assert line.verdicts() == [("out_of_reach", waits)]


@pytest.mark.parametrize("kind", ["push", "reply"])
def test_a_grant_that_is_read_after_the_lease_is_not_believed(line: Line, kind: str) -> None:
    waits = line.waiting()
    other = line.enter("other")
    command = line.command("enter")
    if kind == "push":
        line.core.pushed(b"g", line.core.session, waits.id, b"30 ", LEASE)
    else:
        line.core.replied(command, granted(30), LEASE)
    assert line.verdicts() == []
    assert rows_of(line.command("sync")) == [(b"waits", b"w", b"20"), (b"other", b"e", b"0")]
    assert other.stage is Stage.ENTERING


def test_the_grant_of_a_first_sync_is_not_believed_after_a_lease() -> None:
    line = Line()
    line.core.connected(0)
    line.enter("x")
    sync = line.command("sync")
    line.synced(sync, [1, 10], now=LEASE)
    assert line.verdicts() == []
    assert rows_of(line.command("sync")) == [(b"x", b"e", b"0")]


def test_the_lease_deadline_counts_from_the_command(line: Line) -> None:
    line.holding()
    line.core.tick(5)
    beat = line.command("beat")
    line.core.replied(beat, [1, 2000, b"", b"0", NUMBERS, 1, 1, b"10", [], [], -1], 9)
    assert line.core.lease_deadline == 5 + LEASE
    assert line.verdicts()[0] == ("emit", Heartbeat(4, "ok"))


def test_a_late_message_of_an_old_session_is_ignored(line: Line) -> None:
    waits = line.waiting()
    old = line.core.session
    line.core.disconnected()
    line.core.connected(1)
    line.core.pushed(b"g", old, waits.id, b"30 ", 1)
    line.core.pushed(b"e", old, waits.id, b"", 1)
    assert line.verdicts() == []
    assert waits.stage is Stage.WAITING


def test_a_message_grants_and_names_who_made_room(line: Line) -> None:
    waits = line.waiting()
    line.core.pushed(b"g", line.core.session, waits.id, b"30 b:1 0 00-1 their call", 0)
    assert line.verdicts() == [("granted", waits, CallRef("their call", "b", "00-1"))]


def test_sync_first_is_answered_with_a_sync_once(line: Line) -> None:
    line.enter("x")
    line.enter("y")
    first, second = line.commands()
    line.core.replied(first, [0], 0)
    line.core.replied(second, [0], 0)
    assert rows_of(line.command("sync")) == [(b"x", b"e", b"0"), (b"y", b"e", b"0")]


def test_a_late_sync_is_sent_again_above_the_session_on_record(line: Line) -> None:
    line.core.sync_soon(0)
    line.core.tick(0)
    line.core.replied(line.command("sync"), [-1, 70], 0)
    assert line.command("sync").session == 71


def test_an_error_ends_the_call_and_a_sync_follows(line: Line) -> None:
    ticket = line.enter("x")
    line.core.replied(line.command("enter"), ERROR, 1)
    assert line.verdicts() == [("failed", ticket, ERROR)]
    line.core.tick(line.core.due)
    assert rows_of(line.command("sync")) == []


def test_an_error_reply_to_leave_is_repaired_by_the_sync(line: Line) -> None:
    held = line.holding()
    line.core.leave(held, 1)
    line.core.replied(line.command("leave"), ERROR, 1)
    assert line.verdicts() == [("rejected", "leave", ERROR)]
    line.core.tick(line.core.due)
    line.synced(line.command("sync"))
    assert line.verdicts() == [("left", held, LeaveResult(None), False)]


def test_leaving_waits_for_nothing_and_is_never_sent_again(line: Line) -> None:
    held = line.holding()
    line.core.leave(held, 1)
    line.core.leave(held, 1)
    leave = line.command("leave")
    assert leave.arguments[:2] == (held.member, b"10")
    line.core.disconnected()
    line.core.connected(2)
    sync = line.command("sync")
    assert rows_of(sync) == []
    line.synced(sync)
    assert line.verdicts() == [("left", held, LeaveResult(None), False)]
    assert line.core.tickets == {}


@pytest.mark.parametrize("context", ["", "00-1"])
def test_the_first_call_in_a_queue_learns_from_its_sync_who_holds(context: str) -> None:
    """If it has a context; nobody else wants to know."""
    line = Line()
    line.core.connected(0)
    waits = LocalTicket(make_member("a", 1, 0, context, "waits"), b"1")
    line.core.enter(waits, 0)
    head: list[Any] = [1, 1000, b"", b"0", [1, 1, b"1", 0, 0, 0, 0], [[2, 20, 0, 1]]]
    reply = [*head, 0, b"", [b"b:1 0 00-2 holder"], 0, [], [], -1]
    line.core.replied(line.command("sync"), reply, 0)
    holders = (CallRef("holder", "b", "00-2"),) if context else ()
    assert line.verdicts() == [("waiting", waits, 1, 1, holders)]


@pytest.mark.parametrize(("was", "expected"), [(1, "holding"), (2, "waiting"), (3, None)])
def test_a_kept_place_is_listed_until_redis_has_confirmed_it(
    line: Line, was: int, expected: State | None
) -> None:
    """It might have been granted a slot meanwhile, or have been removed."""
    waits = line.waiting()
    line.core.leave(waits, 1, keep=7e-6)
    assert line.command("leave").arguments[3:] == (b"7", b"20")
    line.core.disconnected()
    line.core.connected(1 + 4e-6)
    sync = line.command("sync")
    assert sync.arguments[7:] == (waits.member, b"k", b"0", b"3", b"20"), "for the rest of its time"
    line.core.disconnected()
    line.core.connected(2)
    sync = line.command("sync")
    assert sync.arguments[7:] == (waits.member, b"k", b"0", b"0", b"20"), "it has expired"
    line.synced(sync, [7, was])
    assert line.verdicts() == [("left", waits, LeaveResult(expected), True)]
    line.core.sync_soon(3)
    line.core.tick(3)
    assert rows_of(line.command("sync")) == []


def test_a_call_that_took_a_kept_place_lists_which(line: Line) -> None:
    line.enter("x", kept=b"b:0000000001 15")
    line.core.replied(line.command("enter"), [[2, 15, 1, 1], 1, b"1", b"", [], [], -1, []], 0)
    line.core.sync_soon(1)
    line.core.tick(1)
    assert line.command("sync").arguments[-1] == b"b:0000000001 15"


def test_an_override_is_listed_and_the_greatest_version_counts(line: Line) -> None:
    line.core.asked("limit", line.core.session, (b"0", b"3"), [b"5", [], [], -1], 1)
    line.core.asked("limit", line.core.session, (b"0", b"9"), [b"4", [], [], -1], 1)
    line.core.sync_soon(1)
    line.core.tick(1)
    sync = line.command("sync")
    assert sync.arguments[2:4] == (b"3", b"5")
    line.synced(sync, override=b"", version=6)
    assert line.core.override == (6, b"")
    assert ("emit", OverrideChanged("q", None)) in line.verdicts()


def test_an_override_that_was_set_elsewhere_is_reported_once(line: Line) -> None:
    """Not at first contact, and not if it was set here."""
    first = Line()
    first.core.connected(0)
    first.enter("x")
    first.synced(first.command("sync"), [1, 10], override=b"3", version=5)
    assert not [each for each in first.verdicts() if each[0] == "emit"]

    line.core.asked("limit", line.core.session, (b"0", b"9"), [b"6", [], [], -1], 1)
    for override, version in ((b"9", 6), (b"0", 7), (b"0", 7)):
        line.core.sync_soon(2)
        line.core.tick(2)
        line.synced(line.command("sync"), override=override, version=version)
    assert line.verdicts() == [("emit", OverrideChanged("q", 0))]


def test_refused(line: Line) -> None:
    ticket = line.enter("x", max_waiting=b"2")
    enter = line.command("enter")
    assert enter.arguments[2] == b"2"
    line.core.replied(enter, [[3, 0, 12, 3_000_000], 2, b"1", b"", [], [], -1, []], 0)
    # A third call would wait for three holds of 3 s.
    assert line.verdicts() == [("refused", ticket, 2, 9.0)]


def test_another_limit_is_reported(line: Line) -> None:
    line.enter("x")
    line.core.replied(line.command("enter"), [[1, 10, 0], 0, b"1", b"4"], 0)
    assert ("emit", LimitDisagreement("q", 4, 1)) in line.verdicts()


def test_evicted_and_lost(line: Line) -> None:
    held, waits = line.holding(), line.waiting()
    line.core.pushed(b"e", line.core.session, held.id, b"", 0)
    line.core.asked("evict", line.core.session, (waits.member,), [1, [], [], -1], 0)
    assert line.verdicts() == [("lost", held, "evicted"), ("evicted", waits)]


def test_a_sync_reports_what_was_evicted_and_reaped_meanwhile(line: Line) -> None:
    held, waits = line.holding(), line.waiting()
    line.core.disconnected()
    line.core.connected(1)
    line.synced(line.command("sync"), [6, 0], [5, 0], lost=1)
    lost = Disrupted("data_lost", "queue 'q' registers 2 tickets again", lasts=False)
    assert line.verdicts() == [("emit", lost), ("lost", held, "reaped"), ("evicted", waits)]


def test_what_an_own_set_limit_grants_is_believed_in_its_session_only(line: Line) -> None:
    waits = line.waiting()
    session = line.core.session
    words, reply = (b"0", b"2"), [b"5", [(waits.member, 30)], [], -1]
    line.core.asked("limit", session, words, reply, LEASE)  # read after the lease
    assert line.verdicts() == []
    line.core.asked("limit", session, words, reply, LEASE)  # of an old session
    assert line.verdicts() == []
    line.synced(line.command("sync"), [2, 20], now=LEASE)
    line.core.asked("limit", line.core.session, words, reply, LEASE)
    assert line.verdicts() == [("granted", waits, None)]


def test_what_an_own_set_limit_grants_is_not_believed_while_no_sync_is_answered(line: Line) -> None:
    """Redis checks no session there, so the lease might have lapsed: others take the slot back."""
    waits = line.waiting()
    line.core.tick(LEASE)
    line.core.replied(line.command("sync"), ERROR, LEASE)
    reply = [[0] * 7, [(waits.member, 30)], [], -1, []]
    line.core.asked("stats", line.core.session, (), reply, LEASE)
    assert [v for v in line.verdicts() if v[0] == "granted"] == []
    line.core.tick(LEASE + 1)
    line.synced(line.command("sync"), [1, 30], now=LEASE + 1)
    assert line.verdicts() == [("granted", waits, None)]


def test_a_disconnected_waiter_fails_when_its_lease_lapses(line: Line) -> None:
    waits = line.waiting()
    line.core.disconnected()
    line.core.tick(LEASE)
    assert line.verdicts() == [("out_of_reach", waits)]
    assert line.commands() == []


@pytest.mark.parametrize(("count", "held", "total"), [(1, 0, b"0"), (2, 1, b"10"), (1, 1, b"11")])
def test_a_heartbeat_that_differs_is_followed_by_a_sync(
    line: Line, count: int, held: int, total: bytes
) -> None:
    line.holding()
    line.core.tick(line.core.due)
    beat = line.command("beat")
    line.core.replied(beat, [1, 2000, b"", b"0", NUMBERS, count, held, total, [], [], -1], 6)
    assert rows_of(line.command("sync")) == [(b"held", b"h", b"10")]


def test_a_heartbeat_that_agrees_is_followed_by_nothing(line: Line) -> None:
    line.holding()
    line.waiting()
    line.core.tick(line.core.due)
    line.core.replied(line.command("beat"), [1, 2000, b"", b"0", NUMBERS, 2, 1, b"10", [], [], -1], 6)
    assert line.commands() == []


def test_a_call_that_enters_after_an_idle_timer_gets_a_heartbeat(line: Line) -> None:
    line.core.tick(line.core.due)
    assert line.core.due == math.inf
    line.enter("x", 6)
    line.synced(line.command("sync"), [1, 10], now=6)
    assert line.core.due < line.core.lease_deadline < math.inf


def test_an_idle_queue_is_forgotten_when_its_lease_has_lapsed(line: Line) -> None:
    assert not line.core.idle  # a late command might still be carried out
    line.core.tick(LEASE)
    assert line.core.idle
    assert line.commands() == []


def test_a_late_reply_without_a_session_sets_no_timer_while_disconnected(line: Line) -> None:
    """`tick` would not reset it, and the driver's timer would fire again and again."""
    session = line.core.session
    line.core.disconnected()
    line.core.asked("limit", session, (b"0", b"2"), [b"5", [], [], 0], 1.0)
    assert line.core.due == math.inf
