"""Checks a history against the promises.

The rules, each of which is decidable for any history:

    ending     every call ends exactly once: granted and given back or lost, or refused, timed out,
               cancelled, evicted, failed. Only a killed process leaves calls without an end. An evicted
               call is not granted afterwards; an enqueued call is not refused
    token      no two grants of a queue have the same token; tokens grow in the order of Redis's time
    limit      no grant exceeds the greatest limit that might be in force; a holder counts until its
               slot.lost could be true
    fifo       no waiter with an earlier place is overtaken; a place is the time of entering less the
               head start
    place      a kept place is taken once, by a call that asks for it, while it is kept; if it is kept,
               that call gets it
    full       no call waits behind `max_waiting` others, and none is refused behind fewer
    standstill no slot stays free, and no call is refused, while a waiter is there and no fault has an
               effect
    cause      no slot is lost, and no call is evicted or failed, without a cause in the history
    timing     a timeout comes neither early nor late
    stuck      no call is in the queue at the end
    left_over  neither Redis nor an instance keeps anything at the end
    window     after a loss of data, a reachable instance registers again in the promised time; from the
               first that noticed the loss on, nothing is granted for half a lease

Excused, because documented: grants in excess of holders, or past waiters, that Redis could not know,
because the lease of their instance had lapsed or the data was lost, until the instance had registered
again, or should have. The duration is measured, and judged by the rule `window`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise

from tests.campaign.endings import check_endings
from tests.campaign.history import History
from tests.campaign.passages import AT_ONCE, EARLY, SLACK, Passage
from tests.campaign.places import check_full, check_places, check_recovery
from tests.campaign.story import Period, Story, subtract
from tests.campaign.verdict import Verdict

__all__ = ["check"]


def check(history: History) -> Verdict:
    """Judge a whole campaign."""
    story = Story(history)
    verdict = Verdict()
    check_endings(story, verdict)
    for queue in history.limits:
        passages = story.of(queue)
        _check_tokens(story, queue, passages, verdict)
        _check_limit(story, queue, passages, verdict)
        _check_fifo(story, queue, passages, verdict)
        check_places(story, queue, passages, verdict.add)
        check_full(story, queue, passages, verdict.add)
        _check_standstill(story, queue, passages, verdict)
        _check_refusals(story, queue, passages, verdict)
    _check_causes(story, verdict)
    _check_timing(story, verdict)
    _check_windows(story, verdict)
    check_recovery(story, verdict.add)
    if history.events:
        whole = Period(history.events[0].at, history.events[-1].at)
        verdict.calm = sum(end - begin for begin, end in subtract(whole, story.disturbed()))
    for event in history.events:
        if event.kind == "left_over":
            verdict.add("left_over", event.at, event.queue, str(event.more["what"]))
    return verdict


# Endings


# Tokens


def _check_tokens(story: Story, queue: str, passages: list[Passage], verdict: Verdict) -> None:
    granted = sorted((p for p in passages if p.granted is not None), key=lambda p: p.token)
    for one, other in pairwise(granted):
        if one.token == other.token:
            text = f"{one.call} and {other.call} bear the same token {one.token}"
            verdict.add("token", other.invoked, queue, text)
    # A token is Redis' time of the grant, if the two clocks can be compared.
    for passage in granted if story.offset is not None else ():
        assert story.offset is not None
        assert passage.granted is not None
        moment, error = passage.token / 1e6 - story.offset[0], story.offset[1] + EARLY
        if not passage.invoked - error <= moment <= passage.granted + error:
            text = f"{passage.call} bears a token of another time, {moment:.3f}"
            verdict.add("token", passage.granted, queue, text)
    # A greater token must not have been answered before a smaller one was asked for.
    earliest: Passage | None = None
    for passage in reversed(granted):
        assert passage.granted is not None
        if earliest is not None and earliest.granted is not None and earliest.granted < passage.invoked:
            text = f"{passage.call} has a smaller token than {earliest.call}, granted before it entered"
            verdict.add("token", passage.invoked, queue, text)
        if earliest is None or earliest.granted is None or passage.granted < earliest.granted:
            earliest = passage


# Limit


def _check_limit(story: Story, queue: str, passages: list[Passage], verdict: Verdict) -> None:
    granted = sorted((p for p in passages if p.granted is not None), key=lambda p: p.token)
    holders: list[Passage] = []
    for passage in granted:
        period = passage.taken
        # All `holders` have smaller tokens, so they were granted before. A holder still in its body at
        # the end of the period in which this grant took effect has held throughout the period.
        holders = [holder for holder in holders if holder.hold_end > period.begin]
        surely = [holder for holder in holders if holder.hold_end > period.end]
        most = max(story.limits(queue, period))
        if len(surely) + 1 > most:
            known = [
                h
                for h in surely
                if not story.unregistered(h, *period, losses_only=not _came_back(story, h, period))
            ]
            if len(known) + 1 > most:
                names = ", ".join(holder.call for holder in known)
                text = f"{passage.call} was granted beyond the limit of {most}, held by {names}"
                verdict.add("limit", period.end, queue, text)
            else:
                _note_overshoot(story, passage, surely, verdict)
        holders.append(passage)


def _came_back(story: Story, holder: Passage, period: Period) -> bool:
    """Whether its grant was read after `period`, and data was lost in between: it might have been
    reaped in `period`, and hold again in data from before."""
    assert holder.granted is not None
    return any(period.end <= loss.end <= holder.granted for loss in story.losses)


def _note_overshoot(story: Story, passage: Passage, holders: list[Passage], verdict: Verdict) -> None:
    assert passage.granted is not None
    first = min(holder.hold_end for holder in holders)
    verdict.overshoots.append(max(0.0, min(first, passage.hold_end) - passage.granted))
    before = [loss.end for loss in story.losses if loss.begin <= passage.taken.end]
    if before:
        verdict.overshot_after.append(max(0.0, passage.taken.end - max(before)))


# Order


def _check_fifo(story: Story, queue: str, passages: list[Passage], verdict: Verdict) -> None:
    granted = sorted((p for p in passages if p.granted is not None), key=lambda p: p.token)
    ends = [passage.taken.end for passage in granted]  # increases with the tokens
    for waiter in passages:
        if waiter.entered is None:
            continue
        for other in granted[bisect_left(ends, waiter.entered) :]:
            if other is waiter or (waiter.granted is not None and other.token > waiter.token):
                break
            if waiter.granted is None and other.taken.end >= waiter.wait_end:
                break
            if waiter.evicted is not None and other.taken.end >= waiter.evicted:
                break  # evicted; but the tombstone might be lost with the data, and it registers again
            if not _behind(other, waiter) or not _granted_after_entering(other, waiter):
                continue
            if not _surely_waited(story, waiter, other.taken):
                continue
            # It might have been granted before, and the grant reaped or lost before it learned of it. A
            # heartbeat with a reply in between would have reported the grant.
            told = min(story.reply_read(waiter, other.taken.end), waiter.waits_end)
            if story.unregistered(waiter, other.taken.begin, max(other.taken.end, told)):
                verdict.overtaken += 1
                continue
            text = f"{other.call} overtook {waiter.call}, which had entered before it"
            verdict.add("fifo", other.taken.end, queue, text)


def _surely_waited(story: Story, waiter: Passage, then: Period) -> bool:
    """Whether `waiter`, which saw no grant, had none in Redis either: one might be in flight."""
    if waiter.granted is not None or waiter.was == "waiting":
        return True
    if waiter.was == "holding":
        return False
    since = Period(then.begin, waiter.wait_end)
    on_its_way = AT_ONCE + 3 * story.lag(since)
    disturbed = any(trouble.meets(since) for trouble in story.disturbed(waiter.who))
    return not disturbed and then.end < waiter.wait_end - on_its_way


def _granted_after_entering(other: Passage, waiter: Passage) -> bool:
    """A head start can put a place before calls that were granted before its call entered."""
    assert waiter.entered is not None
    if waiter.place is None or waiter.resumed:
        return other.taken.begin > waiter.entered
    return not waiter.head_start or other.token > waiter.place + waiter.head_start * 1e6 + 1


def _behind(other: Passage, waiter: Passage) -> bool:
    """Whether `other` is behind `waiter`, by Redis's order or by every place that it might have."""
    if waiter.place is not None and other.place is not None and other.place > waiter.place:
        return True
    mine, theirs = waiter.place_period, other.place_period
    return mine is not None and theirs is not None and theirs.begin > mine.end


# Standstill


def _check_standstill(story: Story, queue: str, passages: list[Passage], verdict: Verdict) -> None:
    stills = _stills(story, queue, passages)
    troubles = story.disturbed()
    for still in stills:
        for rest in subtract(still, troubles):
            lasted = rest.end - rest.begin
            if lasted > AT_ONCE + 3 * story.lag(Period(still.begin - 0.1, rest.end + 0.1)):
                text = f"a slot was free for {lasted:.3f} s while somebody waited"
                verdict.add("standstill", rest.begin, queue, text)


def _check_refusals(story: Story, queue: str, passages: list[Passage], verdict: Verdict) -> None:
    """A call with timeout=0 is refused only if as many calls as the limit are there, or just were."""
    for passage in passages:
        if passage.how != "refused" or passage.ended is None:
            continue
        before = AT_ONCE + 3 * story.lag(Period(passage.invoked - 0.1, passage.ended))
        asked = Period(passage.invoked - before, passage.ended)
        if any(trouble.meets(asked) for trouble in story.disturbed()):
            continue
        there = sum(o.invoked <= asked.end and o.over >= asked.begin for o in passages) - 1
        least = min(story.limits(queue, asked))
        if there < least:
            text = f"{passage.call} was refused, and {there} others were there, of {least}"
            verdict.add("standstill", passage.ended, queue, text)


def _stills(story: Story, queue: str, passages: list[Passage]) -> Iterator[Period]:
    """The periods in which a slot was free although a live waiter was in line."""
    steps: list[tuple[float, int, int]] = []  # when, waiters more, holders more
    for passage in passages:
        if passage.entered is not None and passage.wait_end > passage.entered:
            steps += [(passage.entered, 1, 0), (passage.wait_end, -1, 0)]
        if passage.granted is not None and passage.slot_free > passage.granted:
            steps += [(passage.granted, 0, 1), (passage.slot_free, 0, -1)]
    steps += [(mark, 0, 0) for mark in story.limit_changes(queue)]
    steps.sort()
    waiting = holding = 0
    began: float | None = None
    for index, (at, waiters, holders) in enumerate(steps):
        waiting += waiters
        holding += holders
        following = steps[index + 1][0] if index + 1 < len(steps) else at
        if following == at:
            continue  # simultaneous events are one step
        least = min(story.limits(queue, Period(at, following)))
        still = waiting > 0 and holding < least
        if still and began is None:
            began = at
        elif not still and began is not None:
            yield Period(began, at)
            began = None
    if began is not None and steps[-1][0] > began:
        yield Period(began, steps[-1][0])


# Causes


def _check_causes(story: Story, verdict: Verdict) -> None:
    for passage in story.passages.values():
        queue = passage.queue
        if passage.lost is not None and passage.lost_noticed is not None:
            if passage.reason == "evicted":
                if passage.evicted is None:
                    text = f"{passage.call} lost its slot to an eviction that nobody said"
                    verdict.add("cause", passage.lost_noticed, queue, text)
            elif passage.reason == "closed":
                text = f"{passage.call} lost its slot to a closing, and nothing closes before the end"
                verdict.add("cause", passage.lost_noticed, queue, text)
            else:
                since = Period(passage.lost - story.lease, passage.lost_noticed)
                # Two renewals in a row must be missed: a slightly late machine is no cause.
                late = story.lag(since, passage.who) > story.lease / 6
                if not late and not any(t.meets(since) for t in story.disturbed(passage.who)):
                    text = f"{passage.call} lost its slot ({passage.reason}), and nothing had happened"
                    verdict.add("cause", passage.lost_noticed, queue, text)
        if passage.ended is None:
            continue
        if passage.how == "evicted" and passage.evicted is None:
            verdict.add("cause", passage.ended, queue, f"{passage.call} was evicted by nobody")
        if passage.how == "failed":
            since = Period(passage.invoked - story.lease, passage.ended)
            # The deadline was so short that a reply might not have come in time.
            soon = passage.timeout is not None and passage.timeout <= AT_ONCE + 3 * story.lag(since)
            soon = soon and passage.ended - passage.invoked >= (passage.timeout or 0.0) - EARLY
            if not (soon and passage.timeout) and not _troubled(story, passage.who, since):
                text = f"{passage.call} failed, and nothing had happened"
                verdict.add("cause", passage.ended, queue, text)


def _troubled(story: Story, who: str, period: Period) -> bool:
    """Whether a fault or a busy machine can explain it."""
    faults = any(trouble.meets(period) for trouble in story.disturbed(who))
    return faults or story.busy(period, who)


# Timing


def _check_timing(story: Story, verdict: Verdict) -> None:
    """A timeout counts from entering, whatever the backend does; 0 allows one reply."""
    for passage in story.passages.values():
        if passage.timeout is None or passage.ended is None:
            continue
        due = passage.invoked + (passage.timeout or min(1.0, story.lease / 3))
        if passage.how == "timeout":
            early = passage.invoked + passage.timeout - EARLY - passage.ended
            if early > 0:
                text = f"{passage.call} timed out {early:.3f} s too early"
                verdict.add("timing", passage.ended, passage.queue, text)
        came = passage.ended if passage.granted is None else passage.granted
        if passage.giving_up is not None:
            came = passage.giving_up
        if passage.how not in ("cancelled", "evicted") or passage.granted is not None:
            _check_late(story, passage, due, came, verdict)


def _check_late(story: Story, passage: Passage, due: float, came: float, verdict: Verdict) -> None:
    late = came - due
    if late <= 0:
        return
    period = Period(due, came)
    still = [p for p in story.stopped.get(passage.who, ()) if p.meets(period)]
    allowed = SLACK + 3 * story.lag(Period(due - 0.1, came + 0.1), passage.who)
    if not still and late > allowed:
        text = f"{passage.call} waited {late:.3f} s longer than its timeout"
        verdict.add("timing", came, passage.queue, text)


# Windows


def _check_windows(story: Story, verdict: Verdict) -> None:
    """The time from each loss until every instance had registered; judged if no other fault came."""
    for loss in story.losses:
        if loss.end == math.inf:
            continue
        about = Period(loss.begin - story.lease, loss.end + story.lease)
        alone = len([d for d in story.disturbances if d.period.meets(about)]) <= 1
        alone = alone and story.lag(about) < story.lease / 6
        # A disconnected instance retries after about as long as it was disconnected, at most 1 s.
        outage = loss.end - loss.begin
        allowed = story.lease / 3 + min(1.0, 1.5 * outage) + SLACK
        for passage in story.passages.values():
            if passage.entered is None or not passage.entered < loss.begin < _gone(passage):
                continue
            periods = story.unregistered(
                passage, loss.begin, loss.end, losses_only=True, promised=False
            )
            for period in periods:
                if period.begin != loss.begin:
                    continue  # another loss
                known = min(period.end, _gone(passage)) - loss.end
                if period.end <= _gone(passage):
                    verdict.windows.append(known)
                    if alone:
                        verdict.windows_alone.append(known)
                if alone and known > allowed:
                    text = f"{passage.call} was not known again {allowed:.3f} s after the loss"
                    verdict.add("window", loss.end, passage.queue, text)


def _gone(passage: Passage) -> float:
    ends = (passage.ended, passage.killed, passage.giving_up, passage.leaving, passage.lost)
    return min((end for end in ends if end is not None), default=math.inf)
