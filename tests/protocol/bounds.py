"""The bounds: which calls, which faults. The fast bounds are part of the fast test suite."""

from __future__ import annotations

from tests.protocol.instance import Call
from tests.protocol.state import Bound, Faults

__all__ = ["ALL", "FAST"]

A1, A2, A3 = Call("a1", 0), Call("a2", 0), Call("a3", 0)
B1, B2, C1 = Call("b1", 1), Call("b2", 1), Call("c1", 2)
TWO, THREE, TRIO, OWN = (A1, B1), (A1, A2, B1), (A1, B1, C1), (A1, A2, A3)
F = Faults


def two(*calls: Call) -> tuple[Call, ...]:
    return tuple(call._replace(limit=b"2") for call in calls)


PAUSED = (
    Call("a1", 0, keeps=True, limit=b"0"),
    Call("b1", 1, takes=0, limit=b"0"),
    Call("b2", 1, takes=0, limit=b"0"),
)
PAUSED_TWO = (Call("a1", 0, limit=b"0"), Call("b1", 1, limit=b"0"))
KEEP = (Call("a1", 0), Call("a2", 0, keeps=True), Call("b1", 1, takes=1))
FREE = (A1, Call("a2", 0, max_waiting=b"0"), B1)
FULL = (A1, Call("a2", 0, max_waiting=b"1"), B1)

FAST = [
    Bound("two calls, no fault", TWO),
    Bound("two calls, a break", TWO, F(breaks=1)),
    Bound("two calls, a kill", TWO, F(kills=1)),
    Bound("two calls, a lapse", TWO, F(lapses=1)),
    Bound("two calls, an eviction", TWO, F(evictions=1)),
    Bound("two calls, an eviction by an instance", TWO, F(own_evictions=1)),
    Bound("two calls, a loss", TWO, F(losses=1)),
    Bound("two calls, a flush", TWO, F(flushes=1)),
    Bound("two calls, a clock step", TWO, F(clock_steps=1)),
    Bound("two calls, an early lapse", TWO, F(early=1)),
    Bound("two calls, a stale replica", TWO, F(stale=1)),
    Bound("two calls, a move", TWO, F(moves=1)),
    Bound("two calls, a sync", TWO, F(syncs=1)),
    Bound("two calls, a rejection", TWO, F(rejects=1)),
    Bound("two calls, a message lost", TWO, F(deaf=1)),
    Bound("two calls, an idle queue forgotten", TWO, F(forgets=1)),
    Bound("two calls, a clock step, a record expires", TWO, F(clock_steps=1, prunes=1)),
    Bound("two calls, a lapse, a record expires", TWO, F(lapses=1, prunes=1)),
    Bound("two calls, set_limit 0 and 1 by an outsider", TWO, ops=((-1, 0), (-1, 1))),
    Bound("two calls, set_limit 2 and none by an instance", TWO, ops=((0, 2), (0, None))),
    Bound("two calls of one instance, a break", (A1, A2), F(breaks=1)),
    Bound("two calls of one instance, a rejection", (A1, A2), F(rejects=1)),
    Bound("one call, a break, an eviction", (A1,), F(breaks=1, evictions=1)),
    Bound("three calls, no fault", THREE),
    Bound("three calls, limit 2", two(*THREE)),
    Bound("two calls in pages of one, a sync", (A1, A2), F(syncs=1), page=1),
    Bound("two calls in pages of one, a break", (A1, A2), F(breaks=1), page=1),
    Bound("two calls in pages of one, a loss", (A1, A2), F(losses=1), page=1),
    Bound("three calls in portions of one, a kill", THREE, F(kills=1), portion=1),
    Bound("a call that does not wait", FREE),
    Bound("a full line", FULL),
    Bound("a kept place", KEEP),
]
ALL: list[Bound] = [
    Bound("a paused line, set_limit, a lapse", PAUSED_TWO, F(lapses=1), ((1, 1),), calm=True),
    Bound(
        "three calls, lapse, rejection, set_limit",
        THREE,
        F(lapses=1, rejects=1),
        ((1, 2),),
        calm=True,
        patience=True,
    ),
    Bound("two calls, two breaks", TWO, F(breaks=2)),
    Bound("two calls, break, kill", TWO, F(breaks=1, kills=1)),
    Bound("two calls, break, lapse", TWO, F(breaks=1, lapses=1)),
    Bound("two calls, break, eviction", TWO, F(breaks=1, evictions=1)),
    Bound("two calls, break, own eviction", TWO, F(breaks=1, own_evictions=1)),
    Bound("two calls, lapse, own eviction", TWO, F(lapses=1, own_evictions=1)),
    Bound("two calls, break, loss", TWO, F(breaks=1, losses=1)),
    Bound("two calls, break, clock", TWO, F(breaks=1, clock_steps=1)),
    Bound("two calls, break, stale", TWO, F(breaks=1, stale=1)),
    Bound("two calls, lapse, eviction", TWO, F(lapses=1, evictions=1)),
    Bound("two calls, two lapses", TWO, F(lapses=2)),
    Bound("two calls, kill, loss", TWO, F(kills=1, losses=1)),
    Bound("two calls, lapse, loss", TWO, F(lapses=1, losses=1)),
    Bound("two calls, two losses", TWO, F(losses=2)),
    Bound("two calls, flush, lapse", TWO, F(flushes=1, lapses=1)),
    Bound("two calls, break, move", TWO, F(breaks=1, moves=1)),
    Bound("two calls, two moves", TWO, F(moves=2)),
    Bound("two calls, lapse, move", TWO, F(lapses=1, moves=1)),
    Bound("two calls, early, break", TWO, F(early=1, breaks=1)),
    Bound("two calls, lapse, sync", TWO, F(lapses=1, syncs=1)),
    Bound("two calls, sync, break", TWO, F(syncs=1, breaks=1)),
    Bound("two calls, two rejections", TWO, F(rejects=2)),
    Bound("two calls, rejection, break", TWO, F(rejects=1, breaks=1)),
    Bound("two calls, rejection, lapse", TWO, F(rejects=1, lapses=1)),
    Bound("two calls, break, lapse, prune", TWO, F(breaks=1, lapses=1, prunes=1)),
    Bound("two calls, forget, loss", TWO, F(forgets=1, losses=1)),
    Bound("two calls, forget, break", TWO, F(forgets=1, breaks=1)),
    Bound("two calls, lapse, eviction, prune", TWO, F(lapses=1, evictions=1, prunes=1)),
    Bound("two calls, set_limit, break", TWO, F(breaks=1), ops=((0, 0), (1, 1))),
    Bound("two calls, set_limit, lapse", TWO, F(lapses=1), ops=((0, 0), (1, 1))),
    Bound("two calls, set_limit, loss", TWO, F(losses=1), ops=((0, 0),)),
    Bound("two calls, set_limit 2, loss", TWO, F(losses=1), ops=((0, 2),)),
    Bound("two calls, set_limit 2 and 1, clock", TWO, F(clock_steps=1), ops=((0, 2), (-1, 1))),
    Bound("three calls, break", THREE, F(breaks=1)),
    Bound("three calls, lapse", THREE, F(lapses=1)),
    Bound("three calls, kill", THREE, F(kills=1)),
    Bound("three calls, eviction", THREE, F(evictions=1)),
    Bound("three calls, loss", THREE, F(losses=1)),
    Bound("three calls, clock", THREE, F(clock_steps=1)),
    Bound("three calls, stale", THREE, F(stale=1)),
    Bound("three calls, move", THREE, F(moves=1)),
    Bound("three calls, early", THREE, F(early=1)),
    Bound("three calls, rejection", THREE, F(rejects=1)),
    Bound("three calls, deaf", THREE, F(deaf=1)),
    Bound("three calls, forget", THREE, F(forgets=1)),
    Bound("three calls, set_limit", THREE, ops=((0, 2), (-1, 1))),
    Bound("three instances, kill", TRIO, F(kills=1)),
    Bound("three instances, lapse", TRIO, F(lapses=1), calm=True),
    Bound("limit 2, break", two(*THREE), F(breaks=1)),
    Bound("limit 2, lapse", two(*THREE), F(lapses=1)),
    Bound("limit 2, loss", two(*THREE), F(losses=1)),
    Bound("limit 2, stale", two(*THREE), F(stale=1)),
    Bound("pages, sync", THREE, F(syncs=1), page=1),
    Bound("pages, break", THREE, F(breaks=1), page=1),
    Bound("pages, lapse", THREE, F(lapses=1), page=1),
    Bound("pages, loss", THREE, F(losses=1), page=1),
    Bound("pages, clock", THREE, F(clock_steps=1), page=1),
    Bound("pages, sync, eviction", THREE, F(syncs=1, evictions=1), page=1),
    Bound("pages, stale", THREE, F(stale=1), page=1),
    Bound("portions, lapse", THREE, F(lapses=1), portion=1),
    Bound("portions, clock", THREE, F(clock_steps=1), portion=1),
    Bound("portions, own, break", OWN, F(breaks=1), portion=1),
    Bound("portions, break", THREE, F(breaks=1), portion=1),
    Bound("free, break", FREE, F(breaks=1)),
    Bound("free, lapse", FREE, F(lapses=1)),
    Bound("full, break", FULL, F(breaks=1)),
    Bound("full, loss", FULL, F(losses=1)),
    Bound("keep, break", KEEP, F(breaks=1)),
    Bound("keep, lapse", KEEP, F(lapses=1)),
    Bound("keep, eviction", KEEP, F(evictions=1)),
    Bound("keep, loss", KEEP, F(losses=1)),
    Bound("keep, expiry", KEEP, F(expiries=1)),
    Bound("keep twice, sync", PAUSED, F(syncs=1)),
    Bound("keep twice, break", PAUSED, F(breaks=1)),
    Bound("keep twice, lapse", PAUSED, F(lapses=1)),
    Bound("keep twice, expiry", PAUSED, F(expiries=1)),
]
