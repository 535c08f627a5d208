"""The rule `ending`: see `checker`."""

from __future__ import annotations

from collections import Counter

from tests.campaign.passages import SLACK, Passage
from tests.campaign.story import Period, Story
from tests.campaign.verdict import Verdict

__all__ = ["check_endings"]


_ALLOWED = {
    "released": {"grant"},
    "timeout": set(),
    "refused": set(),
    "full": set(),
    "cancelled": set(),
    "evicted": set(),
    "failed": set(),
}


def check_endings(story: Story, verdict: Verdict) -> None:
    for event in story.unmatched:
        verdict.add("ending", event.at, event.queue, f"{event.call}: {event.kind} out of nothing")
    for passage in story.passages.values():
        fault = _wrong_ending(passage)
        if fault:
            verdict.add("ending", passage.invoked, passage.queue, f"{passage.call} {fault}")
        if passage.ended is not None:
            verdict.outcomes[passage.how] += 1
            verdict.outcomes["lost"] += passage.lost is not None
        elif passage.killed is not None:
            verdict.outcomes["killed"] += 1
        else:
            verdict.add("stuck", passage.invoked, passage.queue, f"{passage.call} never ended")
        _check_eviction(story, passage, verdict)


def _check_eviction(story: Story, passage: Passage, verdict: Verdict) -> None:
    """A call that was certainly evicted is not granted, and learns of the eviction within a lease."""
    evicted, since = passage.surely_evicted, passage.evicted
    if evicted is None or since is None or any(loss.end >= since for loss in story.losses):
        return  # the tombstone might have been lost
    if passage.granted is not None and passage.taken.begin > evicted:
        text = f"{passage.call} was granted a slot after it had been evicted"
        verdict.add("ending", passage.granted, passage.queue, text)
    elif passage.granted is not None and passage.taken.end < since and passage.lost is None:
        until = evicted + 4 / 3 * story.lease + SLACK
        troubles = [t.end for t in story.disturbed(passage.who) if t.meets(Period(since, until))]
        until = max([until, *troubles]) + 3 * story.lag(Period(since, until), passage.who)
        if passage.hold_end_seen > until:
            text = f"{passage.call} held on after it had been evicted"
            verdict.add("ending", until, passage.queue, text)


def _wrong_ending(passage: Passage) -> str:
    events = passage.events
    counts = Counter(events)
    for kind in ("entered", "grant", "end", "leave", "lost"):
        if counts[kind] > 1:
            return f"has {counts[kind]} times {kind}"
    if "end" in events:
        if passage.killed is None and events[-1] != "end":
            return f"goes on after its end: {events}"
        if passage.how not in _ALLOWED:
            return f"ends in an unknown way: {passage.how}"
        if passage.how == "timeout" and not passage.timeout:
            return "timed out without a timeout"
        if passage.how == "refused" and passage.timeout != 0:
            return "was refused, and would have waited"
        if passage.how == "full" and passage.max_waiting is None:
            return "was refused by a full line, and named no length"
        if passage.how in ("full", "refused") and "entered" in events:
            return f"was taken into the line, and then refused ({passage.how})"
        if passage.how == "released" and "grant" not in events:
            return "was released without a grant"
        if passage.how not in ("released", "cancelled") and "grant" in events:
            return f"was granted, and then {passage.how}"
    if "leave" in events and "grant" not in events:
        return "left without a grant"
    return ""
