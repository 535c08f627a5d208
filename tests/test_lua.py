"""Each Lua script's replies and effects, against a real server through a plain client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from genesis.backends.redis.keys import queue_keys
from genesis.backends.redis.scripts import SCRIPT_NAMES, load
from tests.redis_server import RedisServer

LEASE = 60_000_000  # microseconds; long, so that nothing lapses that the test does not let lapse
INTERVAL = LEASE // 3
WAKE = "wake:"


class Line:
    """One queue, at the level of the scripts. Instances are letters, tickets `a:1`, `b:7`."""

    def __init__(self, server: RedisServer) -> None:
        self.client: Any = server.client
        self.keys = [key.decode() for key in queue_keys("test:", "sales")]
        self.meta, self.waiting, self.holding, self.leases = self.keys
        self.base = self.meta[: -len("meta")]
        for name in SCRIPT_NAMES:
            self.client.script_load(load(name).source)
        self.epoch = ""
        self.limits = 0  # said so far

    def run(self, name: str, *arguments: object) -> Any:
        """Call a script; whatever it did, every key has an expiry afterwards."""
        reply = self.client.evalsha(load(name).sha, 4, *self.keys, *arguments)
        for key in self.client.keys("*"):
            if not (key == self.meta and self.client.hexists(key, "override")):
                assert self.client.ttl(key) > 0, f"{key} has no expiry after {name} {arguments}"
        return reply

    def enter(
        self,
        ticket: str,
        limit: object = 1,
        *,
        free: bool = False,
        known: str = "",
        again: bool = False,
    ) -> Any:
        arguments = [ticket, f"ctx item-{ticket}", limit, "free" if free else "", known, LEASE, WAKE]
        reply = self.run("enter", *arguments, *(["1"] if again else []))
        self.epoch = reply[4]
        return reply

    def leave(self, ticket: str) -> Any:
        return self.run("leave", ticket, f"ctx item-{ticket}", LEASE, WAKE)

    def evict(self, ticket: str) -> Any:
        return self.run("evict", ticket, LEASE, WAKE)

    def limit(self, limit: object) -> Any:
        self.limits += 1
        return self.run("limit", limit, LEASE, WAKE, f"call:{self.limits}", 3600)

    def heartbeat(
        self,
        instance: str,
        waiting: tuple[str, ...] = (),
        holding: tuple[str, ...] = (),
        *,
        total: object = None,
        known: str | None = None,
    ) -> Beat:
        known = self.epoch if known is None else known
        total = len(waiting) + len(holding) if total is None else total
        arguments = [instance, known, LEASE, WAKE, total, len(waiting), *waiting, *holding]
        return Beat(self.run("heartbeat", *arguments))

    def restore(
        self,
        instance: str,
        *rows: tuple[str, str, object],
        known: str = "before",
        limit: object = "",
        override: object = "",
        override_at: object = "",
    ) -> Any:
        words = [
            word
            for ticket, state, number in rows
            for word in (ticket, state, number, f"ctx item-{ticket}")
        ]
        return self.run("restore", instance, known, LEASE, WAKE, limit, override, override_at, *words)

    def let_lapse(self, instance: str) -> None:
        """As if this instance had sent no heartbeat for longer than the lease."""
        self.client.zadd(self.leases, {instance: 1}, xx=True)

    def close_window(self) -> None:
        """As if the recovery window were over."""
        self.client.hset(self.meta, "until", 1)

    def now(self) -> int:
        seconds, micros = self.client.time()
        return int(seconds) * 1_000_000 + int(micros)

    def order(self) -> list[str]:
        found: list[str] = self.client.zrange(self.waiting, 0, -1)
        return found

    def holders(self) -> list[str]:
        found: list[str] = self.client.zrange(self.holding, 0, -1)
        return found

    def fingerprint(self) -> dict[str, Any]:
        """All that the queue consists of."""
        found: dict[str, Any] = {}
        for key in sorted(self.client.keys("*")):
            if self.client.type(key) == "hash":
                found[key] = self.client.hgetall(key)
            else:
                found[key] = self.client.zrange(key, 0, -1, withscores=True)
        found.pop(self.leases, None)  # renewed by every call
        return found


class Beat:
    """The reply to a heartbeat, by name."""

    def __init__(self, reply: Any) -> None:
        (
            self.epoch,
            self.look,
            self.shared,
            self.missed,
            self.ended,
            self.unknown,
            self.surplus,
            self.granted,
            self.reclaimed,
        ) = reply


class Ear:
    """Hears what is published to some instances."""

    def __init__(self, server: RedisServer, *instances: str) -> None:
        client: Any = server.client
        self._client = client
        self._pubsub: Any = client.pubsub()
        self._pubsub.subscribe("end", *(WAKE + instance for instance in instances))

    def heard(self) -> list[tuple[str, str]]:
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


# Entering


def test_a_free_slot_is_granted_on_entering_with_a_token(line: Line) -> None:
    """Granted at once: state, token by Redis' clock, no place, nobody waits."""
    before = line.now()
    state, token, position, depth, epoch, previous, look, granted, reclaimed = line.enter("a:1")
    assert (state, position, depth) == ("granted", 0, 0)
    assert before <= int(token) <= line.now()
    assert epoch
    assert (previous, look, granted, reclaimed) == ("", -1, [], [])


def test_a_newcomer_waits_behind_those_who_wait(line: Line) -> None:
    """Waiting: its number, its place, the depth with itself in it."""
    line.enter("a:1")
    first = line.enter("b:1")
    second = line.enter("a:2")
    assert (first[0], first[2], first[3]) == ("waiting", 1, 1)
    assert (second[0], second[2], second[3]) == ("waiting", 2, 2)
    assert int(first[1]) < int(second[1])
    assert line.order() == ["b:1", "a:2"]


def test_a_waiter_is_told_when_the_first_lease_can_lapse(line: Line) -> None:
    """The reply's `look` is the time until the earliest lease of anybody lapses."""
    line.enter("a:1")
    line.client.zadd(line.leases, {"a": line.now() + 5_000_000})
    look = line.enter("b:1")[6]
    assert 4_000_000 < look <= 5_000_000


def test_a_call_that_does_not_wait_is_refused_and_leaves_no_trace(line: Line) -> None:
    """Refused when no slot is free, or when somebody waits for the one that is."""
    line.enter("a:1")
    before = line.fingerprint()
    assert line.enter("b:1", free=True)[:4] == ["refused", "0", 0, 0]
    assert line.fingerprint() == before
    assert line.enter("b:2", 2, free=True)[0] == "granted"


def test_a_refused_call_on_an_idle_queue_leaves_no_limit_behind(line: Line) -> None:
    """A queue paused by set_limit(0) refuses, and still forgets the call site's limit."""
    line.limit(0)
    assert line.enter("a:1", 7, free=True)[0] == "refused"
    assert line.client.hget(line.meta, "limit") is None


def test_no_limit_named_takes_the_one_in_force_or_one(line: Line) -> None:
    """An empty limit changes nothing; an unknown one is 1."""
    assert line.enter("a:1", "")[0] == "granted"
    assert line.enter("a:2", "")[0] == "waiting"
    line.leave("a:2")
    line.leave("a:1")
    line.enter("a:3", 2)
    assert line.enter("a:4", "")[0] == "granted"


def test_another_limit_wins_and_is_reported(line: Line) -> None:
    """A call site with another number puts it in force, grants by it, and learns the previous one."""
    line.enter("a:1", 1)
    line.enter("a:2", 1)
    reply = line.enter("b:1", 3)
    assert reply[5] == "1"
    assert [ticket for ticket, _, _ in reply[7]] == ["a:2"]
    assert reply[0] == "granted"
    assert line.enter("b:2", 3)[5] == ""


def test_a_newcomer_does_not_take_the_slot_that_its_own_limit_adds(line: Line) -> None:
    """A raised limit belongs to those who already wait."""
    line.enter("a:1", 1)
    line.enter("a:2", 1)
    reply = line.enter("b:1", 2)
    assert reply[0] == "waiting"
    assert line.holders() == ["a:1", "a:2"]


@pytest.mark.parametrize("limit", [1, 3])
def test_entering_twice_has_the_effect_of_once(line: Line, limit: int) -> None:
    """Sent again, `enter` finds its ticket, as holder and as waiter, and changes nothing."""
    for ticket in ("a:1", "a:2", "a:3", "b:1", "b:2"):
        first = line.enter(ticket, limit)
        before = line.fingerprint()
        second = line.enter(ticket, limit, again=True)
        assert line.fingerprint() == before
        assert second[:5] == first[:5]


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_the_first_copy_of_an_enter_may_arrive_after_the_repeated_one(line: Line, limit: int) -> None:
    """The copy without the mark, late on a connection that was given up, changes nothing either."""
    line.enter("b:1", limit)
    first = line.enter("a:1", limit, again=True)
    line.enter("b:2", limit)
    before = line.fingerprint()
    late = line.enter("a:1", limit)
    assert line.fingerprint() == before
    assert late[:2] == first[:2]


def test_a_late_copy_of_an_enter_does_not_lose_the_place(line: Line) -> None:
    """Somebody who waits and whose first `enter` arrives late still stands where it stood."""
    line.enter("b:1")
    line.enter("a:1", again=True)
    line.enter("b:2")
    line.enter("a:1")
    assert line.order() == ["a:1", "b:2"]


def test_a_late_copy_of_an_enter_does_not_make_a_holder_wait(line: Line) -> None:
    """A ticket is never in the line and among the holders at once."""
    line.enter("a:1", again=True)
    line.enter("a:1")
    assert (line.holders(), line.order()) == (["a:1"], [])


def test_entering_again_after_an_eviction_is_gone(line: Line) -> None:
    """A ticket that was evicted before its lost reply was asked for again stays evicted."""
    line.enter("b:1")
    line.enter("a:1")
    line.evict("a:1")
    assert line.enter("a:1", again=True)[0] == "gone"
    assert line.order() == []


def test_entering_again_after_being_reaped_is_no_eviction(line: Line) -> None:
    """A ticket whose instance was stopped before it heard of its slot enters anew."""
    line.enter("a:1")
    line.let_lapse("a")
    assert line.enter("b:1")[0] == "granted"
    assert line.enter("a:1", again=True)[0] == "waiting"
    assert line.order() == ["a:1"]
    assert line.client.exists(line.base + "gone") == 0


def test_sent_again_but_never_carried_out_it_enters(line: Line) -> None:
    """The mark `sent again` alone does not keep a ticket out."""
    assert line.enter("a:1", again=True)[0] == "granted"
    assert line.enter("a:2", again=True)[0] == "waiting"


# Leaving


def test_a_holder_gives_its_slot_back(line: Line) -> None:
    """`leave` of a holder says so, and nothing of it is left."""
    line.enter("a:1")
    assert line.leave("a:1") == ["holding", [], []]
    assert line.client.exists(line.waiting, line.holding, line.leases, line.base + "at:a") == 0


def test_a_waiter_leaves_the_line(line: Line) -> None:
    """`leave` of a waiter says so; those behind it move up; nobody is granted."""
    line.enter("a:1")
    line.enter("a:2")
    line.enter("b:1")
    assert line.leave("a:2") == ["waiting", [], []]
    assert line.order() == ["b:1"]
    assert line.holders() == ["a:1"]


def test_leaving_twice_or_unknown_changes_nothing(line: Line) -> None:
    """A repeated `leave`, and one of a ticket that never was, find nothing."""
    line.enter("a:1")
    line.enter("a:2")
    line.leave("a:2")
    before = line.fingerprint()
    assert line.leave("a:2") == ["", [], []]
    assert line.leave("z:9") == ["", [], []]
    assert line.fingerprint() == before


def test_a_release_grants_to_the_head_and_wakes_it_alone(line: Line, ear: Ear) -> None:
    """One message, to the head's instance, with ticket, token and who made room."""
    line.enter("a:1")
    line.enter("b:1")
    line.enter("c:1")
    was, granted, reclaimed = line.leave("a:1")
    ((ticket, token, blob),) = granted
    assert (was, ticket, blob, reclaimed) == ("holding", "b:1", "ctx item-b:1", [])
    assert line.holders() == ["b:1"]
    assert int(token) == int(line.client.zscore(line.holding, "b:1"))
    assert ear.heard() == [("b", f"granted b:1 {token} a:1 ctx item-a:1")]


def test_a_repeated_release_grants_nothing_more(line: Line, ear: Ear) -> None:
    """The slot of a `leave` that is said twice is passed on once."""
    line.enter("a:1")
    line.enter("b:1")
    line.enter("c:1")
    line.leave("a:1")
    line.leave("a:1")
    assert line.holders() == ["b:1"]
    assert len(ear.heard()) == 1


def test_a_waiter_leaving_just_after_its_grant_passes_the_slot_on(line: Line) -> None:
    """Timeout against grant: the ticket has left either way, and the next has the slot."""
    line.enter("a:1")
    line.enter("b:1")
    line.enter("c:1")
    line.leave("a:1")
    was, granted, _ = line.leave("b:1")
    assert was == "holding"
    assert granted[0][0] == "c:1"


def test_a_dead_head_is_reaped_instead_of_granted(line: Line) -> None:
    """The slot goes to the first waiter whose instance is alive; the dead one's are reclaimed."""
    line.enter("a:1")
    line.enter("b:1")
    line.enter("b:2")
    line.enter("c:1")
    line.let_lapse("b")
    _, granted, reclaimed = line.leave("a:1")
    assert [ticket for ticket, _, _ in granted] == ["c:1"]
    assert sorted(reclaimed) == [
        ["waiting", "b:1", "ctx item-b:1"],
        ["waiting", "b:2", "ctx item-b:2"],
    ]


def test_an_idle_queue_forgets_its_limit(line: Line) -> None:
    """After the last call has left, no call site's limit is in force."""
    line.enter("a:1", 5)
    line.leave("a:1")
    assert line.enter("a:2", "")[0] == "granted"
    assert line.enter("a:3", "")[0] == "waiting"


def test_tokens_and_places_grow_even_if_the_clock_steps_back(line: Line) -> None:
    """With `last` in the future, numbers go on from it, in order."""
    line.enter("a:1")
    future = line.now() + 3_600_000_000
    line.client.hset(line.meta, "last", future)
    second, third = line.enter("a:2"), line.enter("a:3")
    assert [int(second[1]), int(third[1])] == [future + 1, future + 2]
    first_grant = line.leave("a:1")[1][0]
    second_grant = line.leave("a:2")[1][0]
    assert [first_grant[0], second_grant[0]] == ["a:2", "a:3"]
    assert future + 2 < int(first_grant[1]) < int(second_grant[1])


@pytest.mark.parametrize("waits", [True, False], ids=["into the line", "into a free slot"])
def test_nothing_expires_under_many_who_never_stay_for_a_heartbeat(line: Line, waits: bool) -> None:
    """Short calls of many instances: each that comes newly puts off the expiry of all that there is."""
    for ticket in ("a:1", "b:1", "c:1") if waits else ("a:1",):
        line.enter(ticket, 2)
    there = line.client.keys("test:{sales}:[^a]*")  # an instance's own book is for that instance
    assert len(there) == (4 if waits else 3)
    for key in there:
        line.client.expire(key, 5)
    line.enter("d:1", 2)
    assert min(line.client.ttl(key) for key in there) > 5


def test_numbers_are_written_out_in_full(line: Line) -> None:
    """No number ever travels in exponent notation, which Lua's own tostring would give."""
    line.enter("a:1")
    line.enter("a:2")
    numbers = [*line.client.zscan(line.waiting)[1], *line.client.zscan(line.holding)[1]]
    assert line.client.hget(line.meta, "last") == f"{max(score for _, score in numbers):.0f}"


# Limits


def test_a_raised_limit_grants_to_waiters_at_once(line: Line, ear: Ear) -> None:
    """set_limit grants as many heads as there is room, in order, one message each."""
    for ticket in ("a:1", "a:2", "b:1", "c:1"):
        line.enter(ticket)
    granted, _ = line.limit(3)
    assert [ticket for ticket, _, _ in granted] == ["a:2", "b:1"]
    assert [message.split()[:2] for _, message in ear.heard()] == [
        ["granted", "a:2"],
        ["granted", "b:1"],
    ]
    assert line.order() == ["c:1"]


def test_a_lowered_limit_takes_effect_as_holders_leave(line: Line) -> None:
    """Nobody loses a slot; nobody gets one before there is room under the new limit."""
    for ticket in ("a:1", "a:2", "a:3", "b:1"):
        line.enter(ticket, 3)
    assert line.limit(1) == [[], []]
    assert line.holders() == ["a:1", "a:2", "a:3"]
    assert line.leave("a:1")[1] == []
    assert line.leave("a:2")[1] == []
    assert line.leave("a:3")[1][0][0] == "b:1"


def test_zero_pauses_and_none_ends_the_override(line: Line) -> None:
    """At 0 nobody gets in; without the override the call sites' limit grants again."""
    line.limit(0)
    assert line.enter("a:1", 2)[0] == "waiting"
    assert line.enter("a:2", 2)[0] == "waiting"
    granted, _ = line.limit("")
    assert [ticket for ticket, _, _ in granted] == ["a:1", "a:2"]


def test_an_override_stands_over_every_call_site(line: Line) -> None:
    """A call site's number is noted, but not in force, while there is an override."""
    line.limit(2)
    assert line.enter("a:1", 1)[0] == "granted"
    assert line.enter("a:2", 1)[0] == "granted"
    assert line.enter("a:3", 9)[0] == "waiting"


def test_only_an_override_keeps_meta_without_expiry(line: Line) -> None:
    """Set, meta persists, whatever else is done; ended, it expires again."""
    line.limit(1)
    assert line.client.ttl(line.meta) == -1
    line.enter("a:1")
    line.leave("a:1")
    assert line.client.ttl(line.meta) == -1
    line.limit("")
    assert line.client.ttl(line.meta) > 0


def test_ending_an_override_that_is_not_there_leaves_nothing(line: Line) -> None:
    """set_limit(None) on a queue that does not exist is remembered for a while, and then forgotten."""
    assert line.limit("") == [[], []]
    assert sorted(line.client.keys("*")) == [f"{line.base}left:call:1", line.meta]
    assert line.client.ttl(line.meta) > 0


# Evicting


def test_an_evicted_waiter_leaves_and_its_owner_is_told(line: Line, ear: Ear) -> None:
    """A message, and a word in case the message is lost."""
    line.enter("a:1")
    line.enter("b:1")
    assert line.evict("b:1") == ["waiting", [], []]
    assert ear.heard() == [("b", "evicted b:1")]
    assert line.client.hgetall(line.base + "gone") == {"b:1": "evicted"}
    assert line.heartbeat("b", waiting=("b:1",)).ended == [["b:1", "evicted"]]


def test_an_evicted_holders_slot_goes_to_the_head(line: Line) -> None:
    """The slot is taken back and granted in the same step."""
    line.enter("a:1")
    line.enter("b:1")
    was, granted, _ = line.evict("a:1")
    assert was == "holding"
    assert granted[0][0] == "b:1"
    assert line.heartbeat("a", holding=("a:1",)).ended == [["a:1", "evicted"]]


def test_the_word_stays_until_its_owner_leaves(line: Line) -> None:
    """Said with every heartbeat, since a reply may be lost; gone with the owner's `leave`."""
    line.enter("a:1")
    line.enter("a:2")
    line.evict("a:2")
    for _ in range(2):
        assert line.heartbeat("a", waiting=("a:2",), holding=("a:1",)).ended == [["a:2", "evicted"]]
    line.leave("a:2")
    assert line.client.exists(line.base + "gone") == 0


def test_evicting_again_says_what_it_did(line: Line) -> None:
    """Whether or not the owner has left by then; one of an unknown ticket finds nothing."""
    line.enter("a:1")
    line.evict("a:1")
    assert line.evict("a:1") == ["evicted", [], []]
    line.leave("a:1")  # its owner has heard of it
    assert line.evict("a:1") == ["evicted", [], []]
    assert line.evict("z:9") == ["", [], []]


# Heartbeats


def test_a_heartbeat_agrees_with_what_is_so(line: Line) -> None:
    """Nothing to correct: only the lease is renewed and the queue's state reported."""
    line.enter("a:1", 1)
    line.enter("a:2", 1)
    line.client.zadd(line.leases, {"a": line.now() + 1_000_000})
    beat = line.heartbeat("a", waiting=("a:2",), holding=("a:1",))
    assert (beat.missed, beat.ended, beat.unknown, beat.surplus) == ([], [], [], [])
    assert beat.epoch == line.epoch
    assert beat.look == INTERVAL
    assert beat.shared[:3] == [1, 1, "1"]
    assert 0 <= beat.shared[3] < 10_000_000
    assert line.client.zscore(line.leases, "a") > line.now() + LEASE - 5_000_000


def test_a_heartbeat_tells_of_a_grant_whose_message_was_lost(line: Line) -> None:
    """Believed waiting, but holding: missed, with the token."""
    line.enter("b:1")
    line.enter("a:1")
    ((_, token, _),) = line.leave("b:1")[1]
    assert line.heartbeat("a", waiting=("a:1",)).missed == [["a:1", token]]


def test_a_heartbeat_tells_of_what_redis_does_not_know(line: Line) -> None:
    """Tickets that Redis has not are unknown; those of others are not touched."""
    line.enter("a:1")
    beat = line.heartbeat("a", waiting=("a:7",), holding=("a:1", "a:8"))
    assert beat.unknown == ["a:7", "a:8"]
    assert line.holders() == ["a:1"]


def test_a_heartbeat_finds_a_surplus_ticket(line: Line) -> None:
    """A ticket that Redis has and the instance has not is told, all tickets with it."""
    line.enter("a:1")
    line.enter("a:2")
    assert sorted(line.heartbeat("a", holding=("a:1",)).surplus) == ["a:1", "a:2"]


def test_an_instance_with_nothing_finds_its_surplus_too(line: Line) -> None:
    """A heartbeat without a ticket, after a `leave` that was refused."""
    line.enter("a:1")
    assert line.heartbeat("a").surplus == ["a:1"]


def test_a_ticket_that_is_entering_is_counted_but_not_listed(line: Line) -> None:
    """No surplus while the reply to `enter` is on its way."""
    line.enter("a:1")
    line.enter("a:2")
    assert line.heartbeat("a", holding=("a:1",), total=2).surplus == []


def test_pages_before_the_last_do_not_count(line: Line) -> None:
    """Without a total there is no surplus; the last page has the total of all."""
    for number in range(1, 5):
        line.enter(f"a:{number}", 1)
    first = line.heartbeat("a", waiting=("a:2", "a:3"), total="")
    last = line.heartbeat("a", waiting=("a:4",), holding=("a:1",), total=4)
    assert (first.surplus, last.surplus) == ([], [])
    assert (first.unknown, last.unknown) == ([], [])


def test_a_heartbeat_says_when_to_look_for_the_dead(line: Line) -> None:
    """`look` is the earliest lapse of another's lease, if that is sooner than an interval."""
    line.enter("b:1")
    line.enter("a:1")
    line.client.zadd(line.leases, {"b": line.now() + 2_000_000})
    assert 1_000_000 < line.heartbeat("a", waiting=("a:1",)).look <= 2_000_000


def test_a_heartbeat_reaps_a_dead_instance_and_passes_its_slots_on(line: Line) -> None:
    """Holder and waiter of the dead are reclaimed, the head among the living is granted."""
    line.enter("b:1")
    line.enter("b:2")
    line.enter("a:1")
    line.let_lapse("b")
    beat = line.heartbeat("a", waiting=("a:1",))
    assert sorted(beat.reclaimed) == [
        ["holding", "b:1", "ctx item-b:1"],
        ["waiting", "b:2", "ctx item-b:2"],
    ]
    assert [ticket for ticket, _, _ in beat.granted] == ["a:1"]
    assert line.client.exists(line.base + "at:b") == 0
    assert line.client.zscore(line.leases, "b") is None


def test_an_instance_never_reaps_itself(line: Line) -> None:
    """Its own lease is renewed before lapsed ones are looked for."""
    line.enter("a:1")
    line.let_lapse("a")
    beat = line.heartbeat("a", holding=("a:1",))
    assert (beat.reclaimed, beat.ended, beat.unknown) == ([], [], [])
    assert line.holders() == ["a:1"]


def test_a_reaped_holder_is_told_and_a_reaped_waiter_may_come_back(line: Line) -> None:
    """A paused instance: its slot is lost, its waiters are unknown and register again."""
    line.enter("b:1")
    number = line.enter("b:2")[1]
    line.enter("a:1")
    line.let_lapse("b")
    line.heartbeat("a", waiting=("a:1",))
    line.enter("a:2")
    beat = line.heartbeat("b", waiting=("b:2",), holding=("b:1",))
    assert beat.ended == [["b:1", "reaped"]]
    assert beat.unknown == ["b:2"]
    line.restore("b", ("b:2", "waiting", number), known=line.epoch)
    assert line.order() == ["b:2", "a:2"]


def test_a_heartbeat_without_tickets_keeps_nobody_alive(line: Line) -> None:
    """An instance that has nothing has no lease."""
    line.enter("a:1")
    line.leave("a:1")
    line.heartbeat("a")
    assert line.client.exists(line.leases) == 0


# Loss of data


def test_waiters_register_again_in_their_order_before_newcomers(line: Line) -> None:
    """Numbers are kept, whatever the order in which the instances come back."""
    for ticket in ("a:1", "a:2", "b:1", "a:3"):
        line.enter(ticket)
    numbers = {t: int(line.client.zscore(line.waiting, t)) for t in line.order()}
    token = int(line.client.zscore(line.holding, "a:1"))
    old = line.epoch
    line.client.flushall()
    assert line.enter("b:2", known=old)[0] == "waiting"
    line.restore("b", ("b:1", "waiting", numbers["b:1"]), known=old)
    line.restore(
        "a",
        ("a:3", "waiting", numbers["a:3"]),
        ("a:2", "waiting", numbers["a:2"]),
        ("a:1", "holding", token),
        known=old,
        limit=1,
    )
    assert line.order() == ["a:2", "b:1", "a:3", "b:2"]
    assert int(line.client.zscore(line.holding, "a:1")) == token


def test_a_newcomer_between_a_heartbeat_and_its_registration_leaves_no_key_for_ever(line: Line) -> None:
    """The lease is there already, the instance's book is not: `run` looks at the expiry of all keys."""
    line.enter("b:1", 5)
    line.heartbeat("a", holding=("a:9",), known="before")
    line.close_window()
    assert line.enter("a:2", 5)[0] == "granted"


def test_nothing_is_granted_before_everybody_could_register(line: Line) -> None:
    """The first who knew the old epoch opens the window, during which no slot is given."""
    line.enter("a:1")
    old = line.epoch
    line.client.flushall()
    beat = line.heartbeat("a", holding=("a:1",), known=old)
    assert beat.epoch != old
    assert beat.unknown == ["a:1"]
    assert 0 < beat.look <= INTERVAL
    state, _, _, _, _, _, look, granted, _ = line.enter("b:1")
    assert (state, granted) == ("waiting", [])
    assert 0 < look <= 1.5 * INTERVAL
    assert line.enter("b:2", free=True)[0] == "refused"
    line.close_window()
    assert [t for t, _, _ in line.leave("a:1")[1]] == ["b:1"]


def test_the_window_is_opened_once_an_epoch(line: Line) -> None:
    """Neither a second instance nor a repetition makes the others wait longer."""
    line.enter("a:1")
    old = line.epoch
    line.client.flushall()
    line.enter("a:2", known=old)
    until = line.client.hget(line.meta, "until")
    line.heartbeat("b", holding=("b:1",), known=old)
    line.restore("b", ("b:1", "holding", 1_000_000), known=old)
    line.enter("c:1", known=old)
    assert line.client.hget(line.meta, "until") == until
    line.close_window()
    line.heartbeat("c", waiting=("c:1",), known=old)
    assert line.client.hget(line.meta, "until") == "1"


def test_the_window_is_longer_than_one_interval(line: Line) -> None:
    """An instance whose beat is due an interval after the loss has a round trip left to register."""
    line.enter("a:1")
    old = line.epoch
    line.client.flushall()
    before = line.now()
    line.enter("a:2", known=old)
    assert int(line.client.hget(line.meta, "until")) - before > 1.1 * INTERVAL


def test_a_holder_is_registered_even_over_the_limit(line: Line) -> None:
    """It does hold: it counts, and nobody is granted until the limit has room again."""
    line.restore("a", ("a:1", "holding", 10), limit=1)
    line.restore("b", ("b:1", "holding", 20), ("b:2", "waiting", 30), limit=1)
    assert line.holders() == ["a:1", "b:1"]
    line.close_window()
    assert line.leave("a:1")[1] == []
    assert [t for t, _, _ in line.leave("b:1")[1]] == ["b:2"]


def test_registering_twice_has_the_effect_of_once(line: Line) -> None:
    """A `restore` whose reply was lost writes the same once more."""
    rows = (("a:1", "holding", 10), ("a:2", "waiting", 20))
    line.restore("a", *rows, limit=1)
    before = line.fingerprint()
    line.restore("a", *rows, limit=1)
    assert line.fingerprint() == before


def test_registering_tells_what_happened_meanwhile(line: Line) -> None:
    """One granted meanwhile is missed; one evicted meanwhile has ended."""
    line.enter("a:1")
    line.enter("a:2")
    line.evict("a:2")
    token = line.client.zscore(line.holding, "a:1")
    rows = (("a:1", "waiting", 1), ("a:2", "waiting", 2))
    _, _, missed, ended, _, _ = line.restore("a", *rows, known=line.epoch)
    assert missed == [["a:1", f"{token:.0f}"]]
    assert ended == [["a:2", "evicted"]]


def test_a_stale_replica_that_shows_a_holder_as_waiting_is_corrected(line: Line) -> None:
    """It is unknown as a holder, registers again, and is off the line."""
    line.enter("b:1")
    line.enter("a:1")
    line.client.zrem(line.holding, "b:1")  # the replica has not seen that a:1 was granted
    line.client.hdel(line.base + "at:b", "b:1")
    assert line.heartbeat("a", holding=("a:1",), known=line.epoch).unknown in (["a:1"], [])
    line.restore("a", ("a:1", "holding", 50), known=line.epoch)
    assert (line.order(), line.holders()) == ([], ["a:1"])


def test_limits_are_registered_again(line: Line) -> None:
    """The call sites' limit and the override come back, with the time at which it was set."""
    line.restore("a", ("a:1", "holding", 10), limit=4, override=2, override_at=77)
    meta = line.client.hgetall(line.meta)
    assert (meta["limit"], meta["override"], meta["override_at"]) == ("4", "2", "77")
    assert line.client.ttl(line.meta) == -1


def test_the_override_that_was_set_last_is_the_one_that_comes_back(line: Line) -> None:
    """Two instances knew two overrides: the later one is in force, whoever registers first."""
    line.restore("a", ("a:1", "holding", 10), override=2, override_at=100)
    line.restore("b", ("b:1", "holding", 20), override=7, override_at=200)
    assert line.client.hget(line.meta, "override") == "7"
    line.restore("a", ("a:1", "holding", 10), override=2, override_at=100)
    assert line.client.hget(line.meta, "override") == "7"
    line.restore("c", ("c:1", "holding", 30), override="", override_at=300)
    assert line.client.hget(line.meta, "override") is None
    line.restore("b", ("b:1", "holding", 20), override=7, override_at=200)
    assert line.client.hget(line.meta, "override") is None


def test_numbers_go_on_above_what_was_registered(line: Line) -> None:
    """No token is ever given twice, even if the new server's clock is behind."""
    future = line.now() + 3_600_000_000
    line.restore("a", ("a:1", "holding", future), limit=1)
    line.close_window()
    assert int(line.enter("b:1")[1]) > future


# The books


def drop_and_beat(line: Line, *keys: str) -> Beat:
    """Single keys vanish, then the audit is due."""
    line.client.delete(*keys)
    line.client.hdel(line.meta, "audited")
    return line.heartbeat("a", waiting=("a:2",), holding=("a:1",))


def test_a_slot_that_no_instance_answers_for_is_taken_back(line: Line) -> None:
    """Redis dropped what a dead instance had: its holder does not keep the slot for good."""
    line.enter("b:1")
    line.enter("b:2")
    line.enter("a:1")
    line.client.zrem(line.leases, "b")
    line.client.delete(line.base + "at:b")
    beat = line.heartbeat("a", waiting=("a:1",))
    assert sorted(row[:2] for row in beat.reclaimed) == [["holding", "b:1"], ["waiting", "b:2"]]
    assert [t for t, _, _ in beat.granted] == ["a:1"]


def test_the_books_are_balanced_once_an_interval(line: Line) -> None:
    """The second heartbeat within an interval does not look through the whole queue."""
    line.enter("a:1")
    line.heartbeat("a", holding=("a:1",))
    line.client.zadd(line.holding, {"b:9": 5})
    line.heartbeat("a", holding=("a:1",))
    assert line.holders() == ["b:9", "a:1"]
    line.client.hset(line.meta, "audited", line.now() - INTERVAL - 1)
    line.heartbeat("a", holding=("a:1",))
    assert line.holders() == ["a:1"]


def test_a_lost_line_is_registered_again(line: Line) -> None:
    """`waiting` was dropped: its tickets are unknown to the heartbeat, and come back."""
    line.enter("a:1")
    number = line.enter("a:2")[1]
    beat = drop_and_beat(line, line.waiting)
    assert beat.unknown == ["a:2"]
    line.restore("a", ("a:2", "waiting", number), known=line.epoch)
    assert line.order() == ["a:2"]


def test_lost_holders_are_registered_again_and_their_slots_not_given_away(line: Line) -> None:
    """`holding` was dropped: the holder that says so with this very heartbeat keeps its slot."""
    line.enter("a:1")
    line.enter("a:2")
    beat = drop_and_beat(line, line.holding)
    assert beat.unknown == ["a:1"]
    assert beat.granted == []


def test_a_live_holder_keeps_its_slot_when_its_instances_book_is_lost(line: Line) -> None:
    """`at:` was dropped: the heartbeat that names the holder must not give its slot away."""
    line.enter("a:1")
    line.enter("a:2")
    beat = drop_and_beat(line, line.base + "at:a")
    assert beat.granted == []
    assert [row for row in beat.reclaimed if row[1] in ("a:1", "a:2")] == []


def test_lost_leases_cost_nobody_alive_a_place(line: Line) -> None:
    """`leases` was dropped: a heartbeat writes the instance's own again, and nobody is reaped."""
    line.enter("a:1")
    line.enter("a:2")
    beat = drop_and_beat(line, line.leases)
    assert beat.reclaimed == []
    assert (line.holders(), line.order()) == (["a:1"], ["a:2"])
    assert line.client.zscore(line.leases, "a") is not None


def test_a_lost_meta_is_a_loss_of_data(line: Line) -> None:
    """`meta` was dropped: another epoch, the window opens, nobody loses a place."""
    line.enter("a:1")
    line.enter("a:2")
    old = line.epoch
    beat = drop_and_beat(line, line.meta)
    assert beat.epoch != old
    assert (beat.unknown, beat.granted) == ([], [])
    assert (line.holders(), line.order()) == (["a:1"], ["a:2"])


# Out of memory


def test_a_heartbeat_renews_the_lease_even_without_memory(line: Line) -> None:
    """A server that may not grow still keeps those alive who are: renewing needs no memory."""
    line.enter("a:1")
    line.client.zadd(line.leases, {"a": line.now() + 1_000_000})
    line.client.config_set("maxmemory", "1")
    try:
        line.heartbeat("a", holding=("a:1",))
    finally:
        line.client.config_set("maxmemory", "0")
    assert line.client.zscore(line.leases, "a") > line.now() + LEASE - 5_000_000


def test_a_leave_passes_the_slot_on_even_without_memory(line: Line) -> None:
    """The order of the writes in `leave` lets Redis carry it out as a whole, or not at all."""
    line.enter("a:1")
    line.enter("b:1")
    line.client.config_set("maxmemory", "1")
    try:
        _, granted, _ = line.leave("a:1")
    finally:
        line.client.config_set("maxmemory", "0")
    assert [t for t, _, _ in granted] == ["b:1"]
    assert (line.holders(), line.order()) == (["b:1"], [])


def test_a_leave_passes_the_slot_on_even_if_it_may_not_be_remembered(line: Line) -> None:
    """A user of before tickets were remembered lacks a right: the leave fails, the line does not."""
    line.enter("a:1")
    line.enter("b:1")
    line.client.execute_command("ACL", "SETUSER", "default", "-set")
    try:
        with pytest.raises(redis.RedisError):
            line.run("leave", "a:1", "ctx item-a:1", LEASE, WAKE, "1")
    finally:
        line.client.execute_command("ACL", "SETUSER", "default", "+set")
    assert line.holders() == ["b:1"]


# Asking


def test_stats_tell_the_queue_at_one_instant(line: Line) -> None:
    """Waiting, in use, limit, the head's wait; a queue that is not there is empty with limit 1."""
    assert line.run("stats") == [0, 0, "1", 0]
    line.enter("a:1", 1)
    entered = int(line.enter("a:2", 1)[1])
    before = line.now()
    waiting, in_use, limit, oldest = line.run("stats")
    assert (waiting, in_use, limit) == (1, 1, "1")
    assert before - entered <= oldest <= line.now() - entered


def test_entries_are_read_in_pages_by_number(line: Line) -> None:
    """Every ticket once and in order, even if somebody leaves between two pages."""
    for number in range(1, 9):
        line.enter(f"a:{number}", 1)
    seen = []
    after = "0"
    while True:
        rows = line.run("entries", "waiting", after, 2)
        seen += [ticket for ticket, _, _, _ in rows]
        if len(rows) < 2:
            break
        after = rows[-1][1]
        if seen[-1] == "a:3":
            line.leave("a:2")
    assert seen == [f"a:{number}" for number in range(2, 9)]


def test_an_entry_has_its_number_age_and_names(line: Line) -> None:
    """Ticket, number or token, microseconds since, and the blob it came with."""
    token = line.enter("a:1")[1]
    ((ticket, number, age, blob),) = line.run("entries", "holding", "0", 10)
    assert (ticket, number, blob) == ("a:1", token, "ctx item-a:1")
    assert 0 <= age < 10_000_000


def test_every_key_of_a_queue_bears_its_hash_tag() -> None:
    """The four keys share one tag for any id, and no two ids share a key."""
    ids = ["sales", "{a}b", "a}b", "%7Ba", "{a", "", "sales:meta", "ü {} %"]
    found = [queue_keys("p:", queue_id) for queue_id in ids]
    assert len(set(found)) == len(ids)
    for keys in found:
        tags = {key[key.index(b"{") + 1 : key.index(b"}")] for key in keys}
        assert len(tags) == 1
