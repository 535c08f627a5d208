"""The core alone: a sync of many pages, and what replies say about who freed a slot."""

from __future__ import annotations

import pytest

from genesis.backends.protocol import CallRef, LeaveResult, Reclaimed
from tests.protocol.core_line import NUMBERS, Line


@pytest.fixture
def line() -> Line:
    return Line().connected()


def test_long_lists_go_in_pages_that_meet() -> None:
    line = Line(page=2)
    tickets = [line.enter(str(i)) for i in range(5)]
    line.core.connected(0)
    pages = line.commands()
    assert [list(page.tickets) for page in pages] == [tickets[:2], tickets[2:4], tickets[4:]]
    assert [page.arguments[5:7] for page in pages] == [
        (b"", tickets[1].member),
        (tickets[1].member, tickets[3].member),
        (tickets[3].member, b""),
    ]
    for page in pages[:2]:
        line.synced(page, [2, 10], [2, 11])
        assert line.core.confirmed == 0
    line.synced(pages[2], [2, 12])
    assert line.core.confirmed == pages[0].session


def test_what_any_page_left_in_redis_is_removed_by_the_next_sync() -> None:
    """The first page removed a portion of unlisted tickets, and found more; the last one did not."""
    line = Line(page=2)
    for i in range(3):
        line.enter(str(i))
    line.core.connected(0)
    first, last = line.commands()
    line.synced(first, [2, 10], [2, 11], more=1)
    line.core.tick(line.core.due - 1)
    assert line.commands() == [], "it waits for the other page"
    line.synced(last, [2, 12], now=1)
    line.core.tick(1)
    pages = line.commands()
    assert [page.name for page in pages] == ["sync", "sync"]
    for page, count in zip(pages, (2, 1), strict=True):
        line.synced(page, *[[2, 10]] * count, now=1)
    line.core.tick(1)
    assert line.commands() == []


def test_who_gets_a_slot_is_in_the_reply_to_leave(line: Line) -> None:
    held, waits = line.holding(), line.waiting()
    line.core.leave(held, 1, b"00-1")
    reply = [1, [[waits.member, 30]], [[b"waiting", b"b:1 0  dead"]], -1]
    line.core.replied(line.command("leave"), reply, 1)
    grant, reclaimed, left = line.verdicts()
    assert grant == ("granted", waits, CallRef("held", "a", "00-1"))
    assert reclaimed == ("emit", Reclaimed("q", "dead", "b", "waiting"))
    assert left == ("left", held, LeaveResult("holding", (CallRef("waits", "a", ""),)), True)


def test_a_waiter_that_gives_up_has_freed_no_slot(line: Line) -> None:
    """Its `leave` might grant slots: after a recovery window, or those of the dead."""
    leaves, waits, last = (line.waiting(name) for name in ("leaves", "waits", "last"))
    line.core.leave(leaves, 1)
    took = [[waits.member, 30], [last.member, 31]], [[b"holding", b"b:1 0  dead"]]
    line.core.replied(line.command("leave"), [2, *took, -1], 1)
    *granted, _, left = line.verdicts()
    assert granted == [
        ("granted", waits, CallRef("dead", "b", "")),
        ("granted", last, None),
    ]
    assert left == ("left", leaves, LeaveResult("waiting"), True)


def test_a_release_names_only_the_call_that_got_its_slot(line: Line) -> None:
    """Its script also passes on the slot of a dead call, which the next in line names as its source."""
    held, first, second = line.holding(), line.waiting("first"), line.waiting("second")
    line.core.leave(held, 1)
    took = [[first.member, 30], [second.member, 31]], [[b"holding", b"b:1 0  dead"]]
    line.core.replied(line.command("leave"), [1, *took, -1], 1)
    *granted, _, left = line.verdicts()
    assert granted == [
        ("granted", first, CallRef("held", "a", "")),
        ("granted", second, CallRef("dead", "b", "")),
    ]
    assert left == ("left", held, LeaveResult("holding", (CallRef("first", "a", ""),)), True)


def test_who_is_granted_the_slot_of_the_dead_learns_whose_it_was(line: Line) -> None:
    waits = line.waiting()
    line.core.tick(line.core.due)
    took = [[waits.member, 30]], [[b"holding", b"b:1 0 00-2 dead"]]
    beat = line.command("beat")
    line.core.replied(beat, [1, 2000, b"", b"0", NUMBERS, 1, 1, b"30", *took, -1], 6)
    assert line.verdicts()[0] == ("granted", waits, CallRef("dead", "b", "00-2"))


def test_each_who_is_granted_a_slot_of_the_dead_learns_whose_it_was(line: Line) -> None:
    """The first one gets the slot of the call that left; a slot beyond those freed has no origin."""
    held, *heirs = line.holding(), line.waiting("w1"), line.waiting("w2"), line.waiting("w3")
    line.core.leave(held, 1)
    took = [[it.member, 30] for it in heirs], [[b"waiting", b"b:1 0  d1"], [b"holding", b"b:2 0  d2"]]
    line.core.replied(line.command("leave"), [1, *took, -1], 1)
    origins = (CallRef("held", "a", ""), CallRef("d2", "b", ""), None)
    assert line.verdicts()[:3] == [("granted", *each) for each in zip(heirs, origins, strict=True)]
