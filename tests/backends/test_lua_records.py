"""What the scripts keep and for how long, and what they do when Redis has lost one key alone."""

from __future__ import annotations

import pytest

from tests.backends.scripted_line import PORTION, Ear, Line, member


@pytest.mark.parametrize("by", ["enter", "leave", "beat", "sync"])
def test_a_short_lease_does_not_shorten_the_expiry_for_a_long_one(
    line: Line, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a lease of 660 s, the slots of an instance that is cut off must outlast it."""
    line.sync("b")
    if by != "enter":
        line.enter("b1")
        line.enter("b2")
    for key in line.client.keys("*"):
        line.client.expire(key, 5_000)
    monkeypatch.setattr("tests.backends.scripted_line.LEASE", 6_000_000)
    actions = {
        "enter": lambda: line.enter("b1"),
        "leave": lambda: line.leave("b1"),
        "beat": lambda: line.mine("beat", "b"),
        "sync": lambda: line.sync("b", ("b2", "w", line.place("b2")), confirmed=1),
    }
    actions[by]()
    assert min(line.client.ttl(key) for key in line.client.keys("*")) > 600


def test_syncs_remove_old_records(line: Line) -> None:
    """Instances that live for a short time send no heartbeat, but each leaves a record."""
    for number in range(30):
        instance = f"instance-{number}"
        line.sync(instance)
        line.client.zadd(line.leases, {instance: -1})  # reaped, and the record has expired
        line.client.hset(line.meta, f"{instance}:r", 1)
    line.sync("b")
    line.sync("b", confirmed=1)
    assert line.client.zrange(line.leases, 0, -1) == ["b"]
    assert not [field for field in line.client.hkeys(line.meta) if field.startswith("instance-")]


def test_a_heartbeat_removes_what_has_expired_in_portions(line: Line) -> None:
    line.sync("b")
    line.client.zadd(line.past, {f"k a:{n:010x} 7": 1 + n for n in range(PORTION + 10)})
    line.client.expire(line.past, 100)
    assert line.mine("beat", "b")[-1] == 0, "it does not ask for the next one at once"
    assert line.client.zcard(line.past) == 10
    assert line.mine("beat", "b")[-1] > 0
    assert line.client.zcard(line.past) == 0


def test_a_heartbeat_that_adds_a_lease_anew_gives_it_an_expiry(line: Line) -> None:
    """`line` looks at the expiry of each key."""
    line.enter("a1")
    line.client.delete(line.leases)
    line.mine("beat", "a")


@pytest.mark.parametrize("limit", [1, 2])
def test_a_waiter_that_gives_up_is_not_named_as_the_one_that_freed_a_slot(
    line: Line, ear: Ear, limit: int
) -> None:
    """After a recovery window; a limit of 1 takes the fast path of leave.lua."""
    for instance in "abc":
        line.sync(instance, limit=limit)
    line.client.hset(line.meta, "until", line.now() + 1_000_000_000)
    for ticket in ("a1", "b1", "c1"):
        line.enter(ticket, limit)
    line.client.hset(line.meta, "until", 1)
    assert len(line.leave("a1")[1]) == limit
    assert [text.split(" ", 4)[4] for _, text in ear.published()] == [""] * limit


def test_an_item_with_a_nul_is_named_in_full_as_the_one_that_freed_a_slot(line: Line, ear: Ear) -> None:
    line.enter("a1")
    line.enter("b1")
    origin = "a:0000000001 0  x\0yz"
    line.mine("leave", "a", member("a1"), "", origin, "", "")
    assert [text.split(" ", 4)[4] for _, text in ear.published()] == [origin]


def test_a_sync_brings_back_the_key_of_the_tickets(line: Line) -> None:
    """Without it, the slot of a dead holder is never free."""
    token = line.enter("a1")[0][1]
    line.enter("b1")
    line.enter("a2")
    line.client.delete(line.tickets)
    assert line.mine("beat", "a")[5] == 0
    rows = ("a1", "h", token), ("a2", "w", line.place("a2"))
    line.sync("a", *rows, confirmed=1, renewed=line.now())
    assert line.mine("beat", "a")[5] == 2
    line.let_lapse("a")
    line.mine("beat", "b")
    assert (line.holders(), line.order()) == (["b1"], [])


@pytest.mark.parametrize("stage", ["h", "w"])
def test_a_kept_place_that_a_listed_ticket_took_is_not_taken_twice(line: Line, stage: str) -> None:
    """After a fail-over to a replica that does not know yet that it was taken."""
    place = line.now() - 1_000_000
    line.enter("c1")
    line.client.zadd(line.past, {f"k a:0000000001 {place}": line.now() + 60_000_000})
    line.client.expire(line.past, 100)
    number = place if stage == "w" else line.now()
    row = ("b1", stage, number, "", f"a:0000000001 {place}")
    assert line.sync("b", row, session=4, confirmed=3, renewed=line.now())[5][0][0] in (1, 2)
    assert line.enter("c2", kept=f"a:0000000001 {place}")[0][2] == 0
