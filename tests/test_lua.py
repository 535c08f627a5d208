"""Each Lua script's replies and effects, as its header says, against a real server through a plain client."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from genesis.backends.redis.keys import queue_keys
from genesis.backends.redis.scripts import SCRIPT_NAMES, load, source_of
from tests.redis_server import RedisServer

LEASE = 60_000_000  # microseconds; long, so that nothing lapses that the test does not let lapse
WAKE = "wake:"
PORTION = 500


def member(ticket: str, head_start: int = 0) -> str:
    """Of `a1`: the first ticket of instance a."""
    return f"{ticket[0]}:{int(ticket[1:]):010x} {head_start}  item-{ticket}"


class Line:
    """One queue, at the level of the scripts. Instances are letters, tickets `a1`, `b7`."""

    def __init__(self, server: RedisServer) -> None:
        self.client: Any = server.client
        self.keys = [key.decode() for key in queue_keys("test:", "sales")]
        self.meta, self.waiting, self.holding, self.tickets, self.leases, self.past, self.override = self.keys
        self.sessions: dict[str, int] = {}
        for name in SCRIPT_NAMES:
            self.client.script_load(load(name).source)

    def run(self, name: str, *arguments: object) -> Any:
        """Call a script; whatever it did, every key but an override has an expiry afterwards."""
        reply = self.client.evalsha(load(name).sha, len(self.keys), *self.keys, *arguments)
        for key in self.client.keys("*"):
            if key != self.override or not self.client.get(key).partition(" ")[2]:
                assert self.client.ttl(key) > 0, f"{key} has no expiry after {name} {arguments}"
        return reply

    def mine(self, name: str, instance: str, *arguments: object) -> Any:
        return self.run(name, instance, self.sessions.get(instance, 0), LEASE, WAKE, *arguments)

    def sync(
        self, instance: str, *rows: tuple[object, ...], session: int = 0, confirmed: object = 0, renewed: object = 0,
        override: object = "", version: object = 0, limit: object = 1, pages: tuple[object, ...] = ("1", "1", "", ""),
    ) -> Any:  # fmt: skip
        self.sessions[instance] = session or self.sessions.get(instance, 0) + 1
        words: list[object] = []
        for ticket, stage, number, *rest in rows:
            words += [member(str(ticket)), stage, number, *rest, *[""] * (3 - len(rest))]
        return self.mine("sync", instance, confirmed, renewed, override, version, limit, *pages, *words)

    def enter(
        self, ticket: str, limit: object = 1, free: str = "", most: object = "", head_start: int = 0, kept: str = "",
        who: str = "",
    ) -> Any:  # fmt: skip
        if ticket[0] not in self.sessions:
            self.sync(ticket[0], limit=limit)
        return self.mine("enter", ticket[0], member(ticket, head_start), limit, free, most, head_start, kept, who)

    def leave(self, ticket: str, token: object = "", keep: object = "", place: object = "") -> Any:
        return self.mine("leave", ticket[0], member(ticket), token, f"{ticket[0]}  item-{ticket}", keep, place)

    def let_lapse(self, instance: str) -> None:
        """As if this instance had sent no heartbeat for longer than the lease."""
        self.client.zadd(self.leases, {instance: 1}, xx=True)

    def now(self) -> int:
        seconds, micros = self.client.time()
        return int(seconds) * 1_000_000 + int(micros)

    def order(self) -> list[str]:
        return [name_of(text) for text in self.client.zrange(self.waiting, 0, -1)]

    def holders(self) -> list[str]:
        return [name_of(text) for text in self.client.zrange(self.holding, 0, -1)]

    def place(self, ticket: str) -> int:
        return int(self.client.zscore(self.waiting, member(ticket)))

    def many(self, instance: str, count: int, key: str = "") -> None:
        """As if `count` calls of an instance were there."""
        names = [f"{instance}:{n:010x} 0  x" for n in range(1, count + 1)]
        self.client.zadd(key or self.waiting, {name: 10 + n for n, name in enumerate(names)})
        self.client.zadd(self.tickets, dict.fromkeys(names, 0))
        for written in (key or self.waiting, self.tickets):
            self.client.expire(written, 100)


def name_of(text: str) -> str:
    return text.rpartition("item-")[2]


def names(rows: Any) -> list[str]:
    return [name_of(row[0]) for row in rows]


class Ear:
    """Gets what is published to some instances."""

    def __init__(self, server: RedisServer, *instances: str) -> None:
        client: Any = server.client
        self._client = client
        self._pubsub: Any = client.pubsub()
        self._pubsub.subscribe("end", *(WAKE + instance for instance in instances))

    def published(self) -> list[tuple[str, str]]:
        """(instance, message): all that was published before this call."""
        self._client.publish("end", "")
        found = []
        for message in self._pubsub.listen():
            if message["type"] == "message":
                if message["channel"] == "end":
                    break
                found.append((message["channel"][len(WAKE) :], message["data"]))
        return found

    def close(self) -> None:
        self._pubsub.close()


@pytest.fixture
def line(redis_server: RedisServer) -> Iterator[Line]:
    yield Line(redis_server)
    redis_server.client.flushall()


@pytest.fixture
def ear(redis_server: RedisServer) -> Iterator[Ear]:
    ear = Ear(redis_server, "a", "b", "c")
    yield ear
    ear.close()


# enter


def test_a_free_slot_is_granted_with_a_token(line: Line) -> None:
    before = line.now()
    code, token, in_use, depth, limit, resumed, previous = line.enter("a1")
    assert (code, in_use, depth, limit, resumed, previous) == (1, 1, 0, "1", 0, "")
    assert before <= token <= line.now()


def test_a_newcomer_waits_and_learns_who_holds(line: Line) -> None:
    line.enter("a1")
    code, place, in_use, depth, _, resumed, _, granted, reclaimed, position, look, holders = line.enter("b1", who="who")
    assert (code, in_use, depth, resumed, granted, reclaimed, position) == (2, 1, 1, 0, [], [], 1)
    assert place == line.place("b1")
    assert 0 < look <= LEASE
    assert holders == [member("a1")]
    assert line.enter("b2")[9:] == [2, look, []] or line.enter("b3")[9] == 3


@pytest.mark.parametrize("session", [1, 3])
@pytest.mark.parametrize("name", ["enter", "leave", "beat"])
def test_another_session_than_the_one_on_record_syncs_first(line: Line, name: str, session: int) -> None:
    line.sync("a", session=2)
    before = line.client.zcard(line.tickets)
    line.sessions["a"] = session
    arguments = {"enter": (member("a1"), 1, "", "", 0, "", ""), "leave": (member("a1"), "", "", "", ""), "beat": ()}
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
    reply = line.enter("b1", free="free")
    assert reply == [3, 0, 1, 0, "1", 0, "", [], [], 0, 0]
    assert line.order() == []


def test_full_with_the_mean_hold(line: Line) -> None:
    token = line.enter("a1")[1]
    line.leave("a1", token - 5_000_000)
    line.enter("a2")
    assert line.enter("b1", most=1)[0] == 2
    code, number, in_use, depth, *_, holds, mean = line.enter("b2", most=1)
    assert (code, number, in_use, depth, holds) == (4, 0, 1, 1, 1)
    assert 5_000_000 <= mean < 10_000_000
    assert line.order() == ["b1"]


def test_another_limit_wins_and_is_reported(line: Line) -> None:
    line.enter("a1", 1)
    line.enter("a2", 1)
    reply = line.enter("b1", 2)
    assert (reply[0], reply[4], reply[6]) == (2, "2", "1")
    assert names(reply[7]) == ["a2"]  # the new slot goes to the line first
    assert line.enter("b2", "")[4] == "2"


def test_a_head_start(line: Line) -> None:
    line.enter("a1")
    line.enter("b1")
    assert line.enter("c1", head_start=10_000_000)[9] == 1
    assert line.order() == ["c1", "b1"]


def test_a_kept_place_is_taken_once(line: Line) -> None:
    line.enter("a1")
    place = line.enter("a2")[1]
    line.enter("b1")
    assert line.leave("a2", keep=60_000_000, place=place)[0] == 2
    kept = f"a:0000000002 {place}"
    code, number, *_ = reply = line.enter("b2", kept=kept)
    assert (code, number, reply[5]) == (2, place, 1)
    assert line.order() == ["b2", "b1"]
    assert line.enter("b3", kept=kept)[5] == 0
    assert line.order() == ["b2", "b1", "b3"]


# leave


def test_leaving(line: Line) -> None:
    token = line.enter("a1")[1]
    line.enter("b1")
    line.enter("b2")
    assert line.leave("b1") == [2, 1, 1, [], [], -1]
    was, in_use, depth, granted, reclaimed, look = line.leave("a1", token)
    assert (was, in_use, depth, names(granted), reclaimed, look) == (1, 1, 0, ["b2"], [], -1)
    assert line.leave("a1", token) == [3, 1, 0]
    assert line.leave("b2") == [1, 0, 0]


def test_a_release_is_published_to_the_head_alone(line: Line, ear: Ear) -> None:
    line.enter("a1")
    line.enter("b1")
    line.enter("c1")
    token = line.leave("a1")[3][0][1]
    assert ear.published() == [("b", f"g 1 b:0000000001 {int(token)} a  item-a1")]


def test_what_the_caller_is_granted_is_in_the_reply(line: Line, ear: Ear) -> None:
    line.enter("a1")
    line.enter("a2")
    assert names(line.leave("a1")[3]) == ["a2"]
    assert ear.published() == []


# beat


def test_a_heartbeat_has_count_and_sum(line: Line) -> None:
    token = line.enter("a1")[1]
    line.enter("a2")
    line.enter("b1")
    code, now, look, count, held, total, numbers, override, version, granted, reclaimed = line.mine("beat", "a")
    assert (code, count, held, int(total)) == (1, 2, 1, token % 2**32)
    assert now <= line.now()
    assert 0 < look <= LEASE
    assert numbers[:3] == [2, 1, "1"]
    assert (override, version, granted, reclaimed) == ("", "0", [], [])


def test_a_heartbeat_reaps_the_dead_and_passes_their_slots_on(line: Line, ear: Ear) -> None:
    line.enter("a1")
    line.enter("b1")
    line.enter("c1")
    line.let_lapse("a")
    *_, granted, reclaimed = line.mine("beat", "c")
    assert names(granted) == ["b1"]
    assert reclaimed == [["holding", member("a1")]]
    assert [instance for instance, _ in ear.published()] == ["b"]


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
    code, now, look, rows, override, version, more, numbers, reclaimed, lost = line.sync("a", ("a1", "e", 0), ("a2", "e", 0))
    assert (code, override, version, more, reclaimed, lost) == (1, "", "0", 0, [], 0)
    token = rows[0][1]
    assert rows == [[1, token, 0], [2, token + 1, 0]]
    assert numbers[:3] == [1, 1, "1"]
    assert line.now() >= now
    assert 0 < look <= LEASE


def test_a_late_sync_gets_the_session_on_record(line: Line) -> None:
    line.sync("a", session=7)
    assert line.sync("a", ("a1", "e", 0), session=7) == [-1, 7]
    assert line.sync("a", ("a1", "e", 0), session=6) == [-1, 7]
    assert line.order() == line.holders() == []


def test_a_later_page_without_its_first_syncs_first(line: Line) -> None:
    line.sync("a", session=7)
    assert line.sync("a", ("a1", "e", 0), session=8, pages=("", "1", "a:", "")) == [0]


def test_what_is_not_listed_is_removed(line: Line) -> None:
    for ticket in ("a1", "a2", "a3"):
        line.enter(ticket)
    rows = line.sync("a", ("a3", "w", line.place("a3")), confirmed=1)[3]
    assert rows[0][0] == 1
    assert (line.holders(), line.order()) == (["a3"], [])


def test_a_page_removes_only_in_its_range(line: Line) -> None:
    for ticket in ("a1", "a2", "a3", "a4"):
        line.enter(ticket)
    line.sync("a", ("a2", "w", line.place("a2")), confirmed=1, session=2, pages=("1", "", "", member("a2")))
    assert (line.holders(), line.order()) == ([], ["a2", "a3", "a4"])
    line.sync("a", ("a4", "w", line.place("a4")), confirmed=1, session=2, pages=("", "1", member("a2"), ""))
    assert (line.holders(), line.order()) == (["a2"], ["a4"])


def test_lost_data_comes_back_in_order_and_nothing_is_granted(line: Line) -> None:
    now = line.now()
    reply = line.sync("b", ("b1", "w", now - 50), session=4, confirmed=3, renewed=now)
    assert (reply[3], reply[9]) == ([[2, now - 50]], 1)
    assert reply[2] <= LEASE // 2
    line.sync("a", ("a1", "w", now - 70), ("a2", "e", 0), session=4, confirmed=3, renewed=now)
    assert line.order() == ["a1", "b1", "a2"]
    assert line.holders() == []
    line.client.hset(line.meta, "until", 1)
    assert names(line.mine("beat", "a")[9]) == ["a1"]


def test_a_holder_comes_back_with_its_token_even_over_the_limit(line: Line) -> None:
    line.enter("b1")
    now = line.now()
    assert line.sync("a", ("a1", "h", now), session=4, confirmed=3, renewed=now)[3] == [[1, now]]
    assert line.holders() == ["b1", "a1"]


def test_a_reaped_holder_is_lost_until_a_sync_is_confirmed(line: Line) -> None:
    token = line.enter("a1")[1]
    line.let_lapse("a")
    line.sync("b")
    for session in (2, 3):
        assert line.sync("a", ("a1", "h", token), session=session, confirmed=1, renewed=line.now())[3] == [[6, 0]]


def test_a_holder_that_was_not_renewed_for_a_lease_is_lost(line: Line) -> None:
    old = line.now() - LEASE - 1
    assert line.sync("a", ("a1", "h", old), session=4, confirmed=3, renewed=old)[3] == [[6, 0]]
    assert line.holders() == []


def test_a_waiter_that_was_away_for_longer_than_records_is_evicted(line: Line) -> None:
    old = line.now() - 601_000_000
    assert line.sync("a", ("a1", "w", old), session=4, confirmed=3, renewed=old)[3] == [[5, 0]]


def test_an_evicted_ticket_stays_so(line: Line) -> None:
    line.enter("a1")
    place = line.enter("a2")[1]
    line.mine("evict", "b", member("a2"))
    assert line.sync("a", ("a2", "w", place), confirmed=1)[3] == [[5, 0]]


def test_a_holder_shown_as_waiting_is_moved(line: Line) -> None:
    line.enter("b1")
    line.enter("a1")
    now = line.now()
    assert line.sync("a", ("a1", "h", now), confirmed=1, renewed=now)[3] == [[1, now]]
    assert (line.holders(), line.order()) == (["b1", "a1"], [])


def test_a_sync_refuses_as_enter_does(line: Line) -> None:
    line.enter("b1")
    line.enter("b2")
    rows = line.sync("a", ("a1", "e", 0, "free"), ("a2", "e", 0, "", 1), ("a3", "e", 0, "", 2))[3]
    assert rows[:2] == [[3, 0], [4, 0, 0, 0]]
    assert rows[2][0] == 2


def test_a_sync_keeps_a_place_that_a_lost_leave_would_have(line: Line) -> None:
    line.enter("b1")
    place = line.enter("a1")[1]
    assert line.sync("a", ("a1", "k", place, 60_000_000), confirmed=1)[3] == [[7, 0]]
    assert line.order() == []
    assert line.enter("b2", kept=f"a:0000000001 {place}")[5] == 1
    line.sync("a", ("a1", "k", place, 60_000_000), confirmed=1)  # its reply was lost
    assert line.enter("b3", kept=f"a:0000000001 {place}")[5] == 0


def test_the_newest_override_comes_back(line: Line) -> None:
    line.sync("a", override=3, version=9)
    assert line.client.get(line.override) == "9 3"
    assert line.sync("b", override=2, version=8)[4:6] == ["3", "9"]
    line.client.delete(line.meta)
    assert line.sync("c")[4:6] == ["3", "9"]


# limit, evict, stats, entries, places


def limit(line: Line, version: object, number: object) -> Any:
    return line.run("limit", "z", "", LEASE, WAKE, version, number)


def test_a_raised_limit_grants_at_once(line: Line, ear: Ear) -> None:
    for ticket in ("a1", "b1", "c1"):
        line.enter(ticket)
    code, version, granted, reclaimed, look = limit(line, 0, 2)
    assert (code, names(granted), reclaimed, look) == (1, ["b1"], [], -1)
    assert len(ear.published()) == 1
    assert limit(line, 0, 3) == [0, version]  # late, or sent twice
    assert limit(line, version, 0)[0] == 1
    line.leave("a1")
    line.leave("b1")
    assert line.order() == ["c1"]


def test_the_number_of_an_ended_override_is_kept_for_a_while(line: Line) -> None:
    version = limit(line, 0, 2)[1]
    assert line.client.ttl(line.override) == -1
    ended = limit(line, version, "")[1]
    assert line.client.get(line.override) == f"{ended} "
    assert 0 < line.client.ttl(line.override) <= 600
    assert line.sync("a", override=2, version=version)[4:6] == ["", ended]


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
    numbers, granted, reclaimed, look = line.run("stats", "z", "", LEASE, WAKE)
    waiting, in_use, named, oldest_wait, oldest_hold, holds, mean = numbers
    assert (waiting, in_use, named, holds, mean) == (1, 2, "2", 0, 0)
    assert 0 < oldest_wait < oldest_hold < LEASE
    assert (granted, reclaimed, look) == ([], [], -1)


def test_entries_in_pages_by_number(line: Line) -> None:
    for ticket in ("a1", "a2", "a3", "b1"):
        line.enter(ticket)
    now, rows = line.run("entries", "waiting", "-inf", 2)
    assert [name_of(text) for text in rows[::2]] == ["a2", "a3"]
    assert now <= line.now()
    assert [name_of(text) for text in line.run("entries", "waiting", rows[3], 2)[1][::2]] == ["b1"]
    assert [name_of(text) for text in line.run("entries", "holding", "-inf", 2)[1][::2]] == ["a1"]


def test_places(line: Line) -> None:
    line.enter("a1")
    line.enter("a2")
    line.enter("a3")
    _, depth, named, holds, mean, rows = line.run("places", member("a1"), member("a3"))
    assert (depth, named, holds, mean) == (2, "1", 0, 0)
    assert rows == [0, 0, 2, line.place("a3")]


# Portions


def test_ten_thousand_tickets_are_reaped_in_portions(line: Line) -> None:
    line.sync("a")
    line.sync("b")
    line.many("a", 10_000)
    line.let_lapse("a")
    calls, total = 0, 0
    while True:
        reply = line.mine("beat", "b")
        calls, total = calls + 1, total + len(reply[10])
        assert len(reply[10]) <= PORTION
        if not reply[10]:
            break
        assert total == 10_000 or reply[2] == 0  # look again at once
    assert (calls, total) == (21, 10_000)
    assert line.client.zcard(line.tickets) == line.client.zcard(line.waiting) == 0


def test_ten_thousand_dead_heads_do_not_keep_redis(line: Line) -> None:
    """A free slot and a long line of the dead: the heads are reaped in portions, and the first living one is granted."""
    line.sync("a")
    line.sync("b")
    line.many("a", 3_000)
    line.client.zadd(line.waiting, {member("b1"): 99_999})
    line.client.zadd(line.tickets, {member("b1"): 0})
    line.let_lapse("a")
    for _ in range(20):
        reply = line.run("stats", "z", "", LEASE, WAKE)
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
        more = line.sync("a", confirmed=1)[6]
        syncs += 1
        assert before - line.client.zcard(line.tickets) <= PORTION + 1  # one of them is granted, and removed next
        if not more:
            break
    assert line.client.zcard(line.tickets) == 0
    assert syncs <= 22


def test_ten_thousand_waiters_are_granted_in_portions(line: Line) -> None:
    line.sync("a")
    line.many("a", 10_000)
    granted = limit(line, 0, 100_000)[2]
    assert len(granted) == PORTION
    while len(granted):
        granted = line.mine("beat", "a")[9]
        assert len(granted) <= PORTION
    assert line.client.zcard(line.holding) == 10_000


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
        assert names(line.leave("a1")[3]) == ["b1"]
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
        assert names(line.leave("a1")[3]) == ["b1"]
    finally:
        line.client.execute_command("ACL", "SETUSER", "default", "+publish")
    assert line.holders() == ["b1"]


# All scripts


def test_numbers_are_written_in_full(line: Line) -> None:
    """Redis would write 1.7e15 otherwise, and microseconds would be lost."""
    token = line.enter("a1")[1]
    assert line.client.hget(line.meta, "last") == str(token)
    version = limit(line, 0, 5)[1]
    assert re.fullmatch(r"\d{16}", version)
    assert line.client.hget(line.meta, "version") == version


@pytest.mark.parametrize("name", SCRIPT_NAMES)
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
        line.run("stats", "z", "", LEASE, WAKE)
        line.run("entries", "waiting", "-inf", 5)
        line.run("places", member("c1"))
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
