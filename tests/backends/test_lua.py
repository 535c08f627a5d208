"""Scripts that belong to a session: replies and effects as their headers say."""

from __future__ import annotations

import pytest

from tests.backends.scripted_line import LEASE, Ear, Line, member, names

# enter


def test_a_free_slot_is_granted_with_a_token(line: Line) -> None:
    before = line.now()
    (code, token, resumed), depth, limit, previous = line.enter("a1")
    assert (code, resumed, depth, limit, previous) == (1, 0, 0, "1", "")
    assert before <= token <= line.now()


def test_a_newcomer_waits_and_learns_who_holds(line: Line) -> None:
    line.enter("a1")
    row, depth, _, _, granted, reclaimed, look, holders = line.enter("b1", context="00-1")
    code, place, resumed, position = row
    assert (code, depth, resumed, granted, reclaimed, position) == (2, 1, 0, [], [], 1)
    assert place == line.client.zscore(line.waiting, member("b1", 0, "00-1"))
    assert 0 < look <= LEASE
    assert holders == [member("a1")]
    for count in (2, 3):
        row, depth, *_, holders = line.enter(f"b{count}")  # without a context it is not told
        assert (row[3], depth, holders) == (count, count, [])


@pytest.mark.parametrize("session", [1, 3])
@pytest.mark.parametrize("name", ["enter", "leave", "beat"])
def test_another_session_than_the_one_on_record_syncs_first(
    line: Line, name: str, session: int
) -> None:
    line.sync("a", session=2)
    before = line.client.zcard(line.tickets)
    line.sessions["a"] = session
    arguments = {
        "enter": (member("a1"), 1, "", ""),
        "leave": (member("a1"), "", "", "", ""),
        "beat": (),
    }
    assert line.mine(name, "a", *arguments[name]) == [0]
    assert line.client.zcard(line.tickets) == before


def test_a_reaped_instance_syncs_first(line: Line) -> None:
    line.enter("a1")
    line.enter("b1")
    line.let_lapse("a")
    line.mine("beat", "b")
    assert line.mine("beat", "a") == [0]
    assert line.enter("a2") == [0]
    assert line.holders() == ["b1"]


def test_no_script_reaps_its_own_caller(line: Line) -> None:
    """What a late enter of a dead instance adds must be taken back with the rest."""
    line.enter("a1")
    line.let_lapse("a")
    line.enter("a2")
    assert (line.holders(), line.order()) == (["a1"], ["a2"])
    line.sync("b")
    assert (line.holders(), line.order()) == ([], [])


def test_busy(line: Line) -> None:
    line.enter("a1")
    assert line.enter("b1", most=0) == [[3, 0, 0, 0], 0, "1", "", [], [], -1, []]
    assert line.order() == []


def test_full_with_the_mean_hold(line: Line) -> None:
    token = line.enter("a1")[0][1]
    line.leave("a1", token - 5_000_000)
    line.enter("a2")
    assert line.enter("b1", most=1)[0][0] == 2
    (code, number, holds, mean), depth, *_ = line.enter("b2", most=1)
    assert (code, number, depth, holds) == (3, 0, 1, 1)
    assert 5_000_000 <= mean < 10_000_000
    assert line.order() == ["b1"]


def test_another_limit_wins_and_is_reported(line: Line) -> None:
    line.enter("a1", 1)
    line.enter("a2", 1)
    reply = line.enter("b1", 2)
    assert (reply[0][0], *reply[2:4]) == (2, "2", "1")
    assert names(reply[4]) == ["a2"]  # the new slot goes to the line first
    assert line.enter("b2", "")[2] == "2"


def test_a_head_start(line: Line) -> None:
    line.enter("a1")
    line.enter("b1")
    assert line.enter("c1", head_start=10_000_000)[0][3] == 1
    assert line.order() == ["c1", "b1"]


def test_a_kept_place_is_taken_once(line: Line) -> None:
    line.enter("a1")
    place = line.enter("a2")[0][1]
    line.enter("b1")
    assert line.leave("a2", keep=60_000_000, place=place)[0] == 2
    kept = f"a:0000000002 {place}"
    assert line.enter("b2", kept=kept)[0][:3] == [2, place, 1]
    assert line.order() == ["b2", "b1"]
    assert line.enter("b3", kept=kept)[0][2] == 0
    assert line.order() == ["b2", "b1", "b3"]


# leave


def test_leaving(line: Line) -> None:
    token = line.enter("a1")[0][1]
    line.enter("b1")
    line.enter("b2")
    assert line.leave("b1") == [2, [], [], -1]
    was, granted, reclaimed, look = line.leave("a1", token)
    assert (was, names(granted), reclaimed, look) == (1, ["b2"], [], -1)
    assert line.leave("a1", token) == [3]
    assert line.leave("b2") == [1]


def test_a_release_is_published_to_the_head_alone(line: Line, ear: Ear) -> None:
    line.enter("a1")
    line.enter("b1")
    line.enter("c1")
    token = line.leave("a1")[1][0][1]
    assert ear.published() == [("b", f"g 1 b:0000000001 {int(token)} {member('a1')}")]


def test_what_the_caller_is_granted_is_in_the_reply(line: Line, ear: Ear) -> None:
    line.enter("a1")
    line.enter("a2")
    assert names(line.leave("a1")[1]) == ["a2"]
    assert ear.published() == []


def test_a_slot_passed_on_when_the_last_holder_turns_out_dead_has_an_expiry(line: Line) -> None:
    """The key of the holders is gone for a moment; `line` looks at the expiry of each key."""
    for ticket in ("a1", "b1", "a2", "c1"):
        line.enter(ticket, 2)
    line.let_lapse("a")
    assert names(line.leave("b1")[1]) == ["c1"]


# beat


def test_a_heartbeat_has_count_and_sum(line: Line) -> None:
    token = line.enter("a1")[0][1]
    line.enter("a2")
    line.enter("b1")
    code, now, override, version, numbers, count, held, total, *effects = line.mine("beat", "a")
    granted, reclaimed, look = effects
    assert (code, count, held, int(total)) == (1, 2, 1, token % 2**32)
    assert now <= line.now()
    assert 0 < look <= LEASE
    assert numbers[:3] == [2, 1, "1"]
    assert (override, version, granted, reclaimed) == ("", "0", [], [])


def test_a_heartbeat_reaps_the_dead_and_passes_their_slots_on(line: Line, ear: Ear) -> None:
    """The call that is granted such a slot learns whose it was."""
    line.enter("a1")
    line.enter("b1")
    line.enter("c1")
    line.let_lapse("a")
    *_, granted, reclaimed, _ = line.mine("beat", "c")
    assert names(granted) == ["b1"]
    assert reclaimed == [["holding", member("a1")]]
    assert ear.published() == [("b", f"g 1 b:0000000001 {int(granted[0][1])} {member('a1')}")]


def test_each_who_is_granted_a_slot_of_the_dead_learns_whose_it_was(line: Line, ear: Ear) -> None:
    for ticket in ("a1", "a2", "b1", "b2"):
        line.enter(ticket, 2)
    line.let_lapse("a")
    line.sync("c", limit=2)
    messages = [text.split(" ", 4) for _, text in ear.published()]
    assert [(ticket, origin) for _, _, ticket, _, origin in messages] == [
        ("b:0000000001", member("a1")),
        ("b:0000000002", member("a2")),
    ]


def test_a_slot_beyond_those_that_were_freed_has_no_origin(line: Line, ear: Ear) -> None:
    """The first one gets the slot of the call that left, the second one that of the dead."""
    for ticket in ("a1", "b1", "a2", "c1", "c2", "c3"):
        line.enter(ticket, 2)
    line.client.hset(line.meta, "limit", 3)
    line.let_lapse("a")
    line.leave("b1")
    messages = [text.split(" ", 4) for _, text in ear.published()]
    assert [origin for *_, origin in messages] == [member("b1"), member("a1"), ""]


def test_a_heartbeat_removes_old_records(line: Line) -> None:
    line.sync("a", session=5)
    line.sync("b")
    line.let_lapse("a")
    line.mine("beat", "b")
    assert line.client.hmget(line.meta, "a", "a:r") == ["-5", "5"]
    line.client.zadd(line.leases, {"a": -(line.now() - 1)})
    line.mine("beat", "b")
    assert line.client.hmget(line.meta, "a", "a:r") == [None, None]
    assert line.client.zscore(line.leases, "a") is None


# sync


def test_first_contact(line: Line) -> None:
    code, now, override, version, numbers, rows, lost, previous, holders, *rest = line.sync(
        "a", ("a1", "e", 0), ("a2", "e", 0)
    )
    more, granted, reclaimed, look = rest
    assert (code, override, version, more, reclaimed, lost, previous) == (1, "", "0", 0, [], 0, "")
    assert (granted, holders) == ([], [member("a1")])
    token = rows[0][1]
    assert rows == [[1, token, 0], [2, token + 1, 0, 1]]
    assert numbers[:3] == [1, 1, "1"]
    assert line.now() >= now
    assert 0 < look <= LEASE


def test_a_sync_reports_another_limit(line: Line) -> None:
    line.enter("a1", 3)
    assert line.sync("b", ("b1", "e", 0), limit=2)[7] == "3"


def test_a_late_sync_gets_the_session_on_record(line: Line) -> None:
    line.sync("a", session=7)
    assert line.sync("a", ("a1", "e", 0), session=7) == [-1, 7]
    assert line.sync("a", ("a1", "e", 0), session=6) == [-1, 7]
    assert line.order() == line.holders() == []


def test_a_later_page_without_its_first_syncs_first(line: Line) -> None:
    line.sync("a", session=7)
    assert line.sync("a", ("a1", "e", 0), session=8, pages=("a:", "")) == [0]


def test_what_is_not_listed_is_removed(line: Line) -> None:
    for ticket in ("a1", "a2", "a3"):
        line.enter(ticket)
    rows = line.sync("a", ("a3", "w", line.place("a3")), confirmed=1)[5]
    assert rows[0][0] == 1
    assert (line.holders(), line.order()) == (["a3"], [])


def test_a_page_removes_only_in_its_range(line: Line) -> None:
    for ticket in ("a1", "a2", "a3", "a4"):
        line.enter(ticket)
    line.sync("a", ("a2", "w", line.place("a2")), confirmed=1, session=2, pages=("", member("a2")))
    assert (line.holders(), line.order()) == ([], ["a2", "a3", "a4"])
    line.sync("a", ("a4", "w", line.place("a4")), confirmed=1, session=2, pages=(member("a2"), ""))
    assert (line.holders(), line.order()) == (["a2"], ["a4"])


def test_lost_data_comes_back_in_order_and_nothing_is_granted(line: Line) -> None:
    now = line.now()
    reply = line.sync("b", ("b1", "w", now - 50), session=4, confirmed=3, renewed=now)
    assert reply[5:7] == [[[2, now - 50]], 1]
    assert reply[-1] <= LEASE // 2
    line.sync("a", ("a1", "w", now - 70), ("a2", "e", 0), session=4, confirmed=3, renewed=now)
    assert line.order() == ["a1", "b1", "a2"]
    assert line.holders() == []
    line.client.hset(line.meta, "until", 1)
    assert names(line.mine("beat", "a")[8]) == ["a1"]


@pytest.mark.parametrize("by", ["beat", "sync", "enter"])
def test_a_clock_that_steps_back_opens_the_recovery_window_again(line: Line, by: str) -> None:
    """Otherwise nothing is granted until the clock has caught up."""
    line.sync("b", ("b1", "e", 0), session=4, confirmed=3, renewed=line.now())
    hour = 3_600_000_000
    for field in ("until", "opened"):  # as if an hour was missing on Redis's clock
        line.client.hincrbyfloat(line.meta, field, hour)
    actions = {
        "beat": lambda: line.mine("beat", "b"),
        "sync": lambda: line.sync("b", ("b1", "w", line.place("b1")), confirmed=4),
        "enter": lambda: line.enter("a1"),
    }
    actions[by]()
    left = float(line.client.hget(line.meta, "until")) - line.now()
    assert LEASE / 2 - 10_000_000 < left <= LEASE / 2
    assert line.holders() == []
    line.mine("beat", "b")
    assert float(line.client.hget(line.meta, "until")) - line.now() < left, "it opened once more"


def test_a_holder_comes_back_with_its_token_even_over_the_limit(line: Line) -> None:
    line.enter("b1")
    now = line.now()
    assert line.sync("a", ("a1", "h", now), session=4, confirmed=3, renewed=now)[5] == [[1, now]]
    assert line.holders() == ["b1", "a1"]


def test_a_reaped_holder_is_lost_until_a_sync_is_confirmed(line: Line) -> None:
    token = line.enter("a1")[0][1]
    line.let_lapse("a")
    line.sync("b")
    for session in (2, 3):
        assert line.sync("a", ("a1", "h", token), session=session, confirmed=1, renewed=line.now())[
            5
        ] == [[6, 0]]


def test_a_holder_that_was_not_renewed_for_a_lease_is_lost(line: Line) -> None:
    old = line.now() - LEASE - 1
    assert line.sync("a", ("a1", "h", old), session=4, confirmed=3, renewed=old)[5] == [[6, 0]]
    assert line.holders() == []


def test_a_waiter_that_was_away_for_longer_than_records_is_evicted(line: Line) -> None:
    old = line.now() - 601_000_000
    assert line.sync("a", ("a1", "w", old), session=4, confirmed=3, renewed=old)[5] == [[5, 0]]


def test_an_evicted_ticket_stays_so(line: Line) -> None:
    line.enter("a1")
    place = line.enter("a2")[0][1]
    line.mine("evict", "b", member("a2"))
    assert line.sync("a", ("a2", "w", place), confirmed=1)[5] == [[5, 0]]


def test_a_holder_shown_as_waiting_is_moved(line: Line) -> None:
    line.enter("b1")
    line.enter("a1")
    now = line.now()
    assert line.sync("a", ("a1", "h", now), confirmed=1, renewed=now)[5] == [[1, now]]
    assert (line.holders(), line.order()) == (["b1", "a1"], [])


def test_a_sync_refuses_as_enter_does(line: Line) -> None:
    line.enter("b1")
    line.enter("b2")
    rows = line.sync("a", ("a1", "e", 0, 0), ("a2", "e", 0, 1), ("a3", "e", 0, 2))[5]
    assert rows[:2] == [[3, 0, 0, 0], [3, 0, 0, 0]]
    assert rows[2][0] == 2


def test_a_sync_keeps_a_place_that_a_lost_leave_would_have(line: Line) -> None:
    line.enter("b1")
    place = line.enter("a1")[0][1]
    assert line.sync("a", ("a1", "k", 0, 60_000_000, place), confirmed=1)[5] == [[7, 2]]  # it waited
    assert line.order() == []
    assert line.enter("b2", kept=f"a:0000000001 {place}")[0][2] == 1
    line.sync("a", ("a1", "k", 0, 60_000_000, place), confirmed=1)  # its reply was lost
    assert line.enter("b3", kept=f"a:0000000001 {place}")[0][2] == 0


@pytest.mark.parametrize("by", ["leave", "sync"])
def test_a_place_whose_taker_left_unanswered_is_kept_again(line: Line, by: str) -> None:
    """Only the ticket that took it gives it back, and once; it expires as it would have."""
    line.enter("b1")
    kept = f"a:0000000001 {line.enter('a1')[0][1]}"
    line.leave("a1", "", 60_000_000, kept.split(" ")[1])
    assert line.enter("b2", kept=kept)[0][2] == 1
    assert line.enter("c3", kept=kept)[0][2] == 0
    line.leave("c3", "", "back", kept)
    assert line.enter("c4", kept=kept)[0][2] == 0, "c3 had not taken it"
    if by == "leave":
        line.leave("b2", "", "back", kept)
    else:
        line.sync("b", ("b2", "k", 0, "back", kept), confirmed=1)
    _, expiry = line.client.zrangebyscore(line.past, 1, "+inf", withscores=True)[0]
    assert expiry < line.now() + 60_000_000
    assert line.enter("c5", kept=kept)[0][2] == 1
    line.leave("b2", "", "back", kept)
    assert line.enter("c6", kept=kept)[0][2] == 0


def test_the_newest_override_comes_back(line: Line) -> None:
    line.sync("a", override=3, version=9)
    assert line.client.get(line.override) == "9 3"
    assert line.sync("b", override=2, version=8)[2:4] == ["3", "9"]
    line.client.delete(line.meta)
    assert line.sync("c")[2:4] == ["3", "9"]
