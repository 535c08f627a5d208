"""Scripts of no session, portions, rejections, and what all scripts have in common."""

from __future__ import annotations

import re

import pytest
import redis

from genesis.backends.redis.keys import queue_keys
from genesis.backends.redis.scripts import INSTANCE_SCRIPTS, source_of
from tests.backends.scripted_line import LEASE, PORTION, Ear, Line, limit, member, name_of, names
from tests.support.redis_server import RedisServer

# limit, evict, stats, entries


def test_a_raised_limit_grants_at_once(line: Line, ear: Ear) -> None:
    for ticket in ("a1", "b1", "c1"):
        line.enter(ticket)
    version, granted, reclaimed, look = limit(line, 0, 2)
    assert (names(granted), reclaimed, look) == (["b1"], [], -1)
    assert len(ear.published()) == 1
    assert limit(line, 0, 3) == [version]  # late, or sent twice
    assert limit(line, version, 0)[1:] == [[], [], -1]
    line.leave("a1")
    line.leave("b1")
    assert line.order() == ["c1"]


def test_the_number_of_an_ended_override_is_kept_for_a_while(line: Line) -> None:
    version = limit(line, 0, 2)[0]
    assert line.client.ttl(line.override) == -1
    ended = limit(line, version, "")[0]
    assert line.client.get(line.override) == f"{ended} "
    assert 0 < line.client.ttl(line.override) <= 600
    assert line.sync("a", override=2, version=version)[2:4] == ["", ended]


def test_evict(line: Line, ear: Ear) -> None:
    line.enter("a1")
    line.enter("b1")
    assert line.mine("evict", "c", member("b1")) == [1, [], [], -1]
    assert line.mine("evict", "c", member("b1")) == [0, [], [], -1]
    assert ear.published() == [("b", "e 1 b:0000000001")]
    line.enter("b2")
    assert names(line.mine("evict", "a", member("a1"))[1]) == ["b2"]  # its own: not published
    assert [text[0] for _, text in ear.published()] == ["g"]


def test_stats(line: Line) -> None:
    line.enter("a1", 2)
    line.enter("a2", 2)
    line.enter("a3", 2)
    numbers, granted, reclaimed, look, *_ = line.ask("stats")
    waiting, in_use, named, oldest_wait, oldest_hold, holds, mean = numbers
    assert (waiting, in_use, named, holds, mean) == (1, 2, "2", 0, 0)
    assert 0 < oldest_wait < oldest_hold < LEASE
    assert (granted, reclaimed, look) == ([], [], -1)


def test_entries_in_pages_by_number(line: Line) -> None:
    for ticket in ("a1", "a2", "a3", "b1"):
        line.enter(ticket)
    rows = line.ask("entries", "waiting", "-inf", 2)
    assert [name_of(text) for text, _, _ in rows] == ["a2", "a3"]
    assert [number for _, number, _ in rows] == [line.place("a2"), line.place("a3")]
    assert LEASE > rows[0][2] > rows[1][2] > 0
    assert names(line.ask("entries", "waiting", rows[1][1], 2)) == ["b1"]
    [(text, _, held)] = line.ask("entries", "holding", "-inf", 2)
    assert name_of(text) == "a1"
    assert LEASE > held > rows[0][2]


def test_a_page_of_entries_ends_with_all_that_share_a_number(line: Line) -> None:
    """With head starts, two places can be equal; the next page begins after their number."""
    for ticket in ("a1", "a2", "a3", "b1", "b2"):
        line.enter(ticket)
    line.client.zadd(line.waiting, {member("b1"): line.place("a3")})
    rows = line.ask("entries", "waiting", "-inf", 2)
    assert names(rows) == ["a2", "a3", "b1"]
    assert names(line.ask("entries", "waiting", rows[-1][1], 2)) == ["b2"]


def test_places(line: Line) -> None:
    line.enter("a1")
    line.enter("a2")
    line.enter("a3")
    numbers, *_, rows = line.ask("stats", member("a1"), member("a3"))
    assert numbers[:3] == [2, 1, "1"]
    assert rows == [[0], [2, rows[1][1]]]
    assert 0 < rows[1][1] < LEASE


def test_a_ticket_that_took_a_kept_place_has_waited_since_it_entered(line: Line) -> None:
    """For a day that is known; the heartbeat removes what is older, and what has expired."""
    line.enter("b1")
    place = line.now() - 50_000_000
    line.client.zadd(line.past, {f"k a:0000000001 {place}": line.now() + 1_000_000})
    line.client.expire(line.past, 100)
    line.enter("b2", kept=f"a:0000000001 {place}")

    def waited() -> list[int]:
        return [
            line.ask("stats", member("b2"))[4][0][1],
            line.ask("entries", "waiting", "-inf", 2)[0][2],
        ]

    assert line.place("b2") == place
    assert all(0 < us < 50_000_000 for us in waited())
    line.mine("beat", "b")
    assert all(0 < us < 50_000_000 for us in waited())
    line.client.zadd(line.past, {"e b:0000000002": 86_500_000_000 - line.now()})
    line.mine("beat", "b")
    assert all(us >= 50_000_000 for us in waited())


# Portions


def test_ten_thousand_tickets_are_reaped_in_portions(line: Line) -> None:
    line.sync("a")
    line.sync("b")
    line.many("a", 10_000)
    line.let_lapse("a")
    calls, total = 0, 0
    while True:
        reply = line.mine("beat", "b")
        calls, total = calls + 1, total + len(reply[-2])
        assert len(reply[-2]) <= PORTION
        if not reply[-2]:
            break
        assert total == 10_000 or reply[-1] == 0  # look again at once
    assert (calls, total) == (21, 10_000)
    assert line.client.zcard(line.tickets) == line.client.zcard(line.waiting) == 0


def test_ten_thousand_dead_heads_do_not_keep_redis(line: Line) -> None:
    """Behind a free slot stands a long line of the dead: they are reaped in portions."""
    line.sync("a")
    line.sync("b")
    line.many("a", 3_000)
    line.client.zadd(line.waiting, {member("b1"): 99_999})
    line.client.zadd(line.tickets, {member("b1"): 0})
    line.let_lapse("a")
    for _ in range(20):
        reply = line.ask("stats")
        assert len(reply[2]) <= PORTION
        if reply[1]:
            break
        assert reply[3] == 0
    assert names(reply[1]) == ["b1"]


def test_ten_thousand_unlisted_tickets_are_removed_in_portions(line: Line) -> None:
    line.sync("a")
    line.many("a", 10_000)
    syncs = 0
    while True:
        before = line.client.zcard(line.tickets)
        more = line.sync("a", confirmed=1)[9]
        syncs += 1
        assert before - line.client.zcard(line.tickets) <= PORTION + 1  # one is granted first
        if not more:
            break
    assert line.client.zcard(line.tickets) == 0
    assert syncs <= 22


def test_ten_thousand_waiters_are_granted_in_portions(line: Line) -> None:
    line.sync("a")
    line.many("a", 10_000)
    granted = limit(line, 0, 100_000)[1]
    assert len(granted) == PORTION
    while len(granted):
        granted = line.mine("beat", "a")[8]
        assert len(granted) <= PORTION
    assert line.client.zcard(line.holding) == 10_000


def test_a_sync_publishes_each_grant_once(line: Line, redis_server: RedisServer) -> None:
    """It grants before each call that enters, and publishes no earlier grant again."""
    for instance in "bc":
        line.sync(instance, limit=100)
    line.many("b", 100)
    redis_server.client.config_resetstat()
    granted = line.sync("c", *((f"c{n}", "e", 0) for n in range(1, 101)), limit=100)[10]
    assert len(granted) == 100
    assert redis_server.calls("publish") == 100


# What the server might refuse


def test_a_heartbeat_renews_the_lease_even_without_memory(line: Line) -> None:
    line.enter("a1")
    line.client.zadd(line.leases, {"a": line.now() + 1_000_000})
    line.client.config_set("maxmemory", "1")
    try:
        line.mine("beat", "a")
    finally:
        line.client.config_set("maxmemory", "0")
    assert line.client.zscore(line.leases, "a") > line.now() + LEASE - 5_000_000


def test_a_leave_passes_the_slot_on_even_without_memory(line: Line) -> None:
    line.enter("a1")
    line.enter("b1")
    line.client.config_set("maxmemory", "1")
    try:
        assert names(line.leave("a1")[1]) == ["b1"]
    finally:
        line.client.config_set("maxmemory", "0")
    assert (line.holders(), line.order()) == (["b1"], [])


def test_an_enter_without_memory_changes_nothing(line: Line) -> None:
    line.enter("a1")
    line.client.config_set("maxmemory", "1")
    try:
        with pytest.raises(redis.RedisError, match="maxmemory"):
            line.enter("a2")
    finally:
        line.client.config_set("maxmemory", "0")
    assert line.order() == []
    assert line.client.zcard(line.tickets) == 1


def test_a_user_who_must_not_publish_gets_no_half_step(line: Line) -> None:
    line.enter("a1")
    line.enter("b1")
    line.client.execute_command("ACL", "SETUSER", "default", "-publish")
    try:
        assert names(line.leave("a1")[1]) == ["b1"]
    finally:
        line.client.execute_command("ACL", "SETUSER", "default", "+publish")
    assert line.holders() == ["b1"]


# All scripts


def test_numbers_are_written_in_full(line: Line) -> None:
    """Redis would write 1.7e15 otherwise, and microseconds would be lost."""
    token = line.enter("a1")[0][1]
    assert line.client.hget(line.meta, "last") == str(token)
    version = limit(line, 0, 5)[0]
    assert re.fullmatch(r"\d{16}", version)
    assert line.client.hget(line.meta, "version") == version


@pytest.mark.parametrize("name", INSTANCE_SCRIPTS)
def test_a_header_names_keys_arguments_reply_and_race(name: str) -> None:
    text = source_of(name)
    assert all(word in text for word in ("-- KEYS", "-- ARGV", "-- Reply", "-- Races"))


def test_every_key_that_a_script_touches_is_declared(line: Line) -> None:
    touched: set[str] = set()
    with line.client.monitor() as monitor:
        line.enter("a1")
        line.enter("b1", kept="a:1 5", most=3)
        line.leave("b1", keep=1000, place=7)
        line.sync("c", ("c1", "e", 0), override=3, version=4)
        line.let_lapse("a")
        line.mine("beat", "c")
        limit(line, 4, 2)
        line.mine("evict", "c", member("c1"))
        line.ask("stats", member("c1"))
        line.ask("entries", "waiting", "-inf", 5)
        line.client.echo("the end")
        for command in monitor.listen():
            words = command["command"].split(" ")
            if words[0] == "ECHO":
                break
            if command["client_type"] == "lua" and words[0].upper() not in ("TIME", "PUBLISH"):
                touched.add(words[1])
    assert touched <= set(line.keys)
    assert len(touched) == len(line.keys)


def test_every_key_of_a_queue_bears_its_hash_tag() -> None:
    assert all(b"{sales}:" in key for key in queue_keys("test:", "sales"))
