"""Further rules: places and head starts, kept places, full lines, and the recovery window.

Each rule judges only what the history proves. A fault that might explain an observation excuses it, as
in `checker`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import TypeAlias

from tests.campaign.passages import AT_ONCE, EARLY, Passage
from tests.campaign.story import Period, Story

__all__ = ["check_full", "check_places", "check_recovery"]

Report: TypeAlias = Callable[[str, float, str, str], None]
"""Of a violation: rule, time, queue, text."""


def check_places(story: Story, queue: str, passages: list[Passage], report: Report) -> None:
    """Places are times of entering less head starts; a kept place is taken once, unchanged."""
    by_call = {passage.call: passage for passage in passages}
    takers: dict[str, list[Passage]] = defaultdict(list)
    for passage in passages:
        _check_place(story, passage, report)
        if passage.place_of:
            takers[passage.place_of].append(passage)
        elif passage.resumed:
            report("place", passage.invoked, queue, f"{passage.call} took a place unasked")
    for name, asking in takers.items():
        kept = by_call.get(name)
        if kept is not None:
            _check_kept(story, kept, asking, report)


def _check_place(story: Story, passage: Passage, report: Report) -> None:
    period = passage.place_period
    if passage.place is None or period is None or story.offset is None:
        return
    offset, error = story.offset
    moment = passage.place / 1e6 - offset
    if not period.begin - error - EARLY <= moment <= period.end + error + EARLY:
        text = f"{passage.call} stands at a place of another time, {moment:.3f}, not in {period}"
        report("fifo", passage.invoked, passage.queue, text)


def _check_kept(story: Story, kept: Passage, asking: list[Passage], report: Report) -> None:
    used = [passage for passage in asking if passage.resumed]
    queue, giving_up = kept.queue, kept.giving_up
    since = kept.invoked if giving_up is None else giving_up
    if used and not kept.keep:
        report("place", used[0].invoked, queue, f"{used[0].call} took a place that was not kept")
    for passage in used:
        if None not in (passage.place, kept.place) and passage.place != kept.place:
            text = f"{passage.call} took the place of {kept.call}, and stands elsewhere"
            report("place", passage.invoked, queue, text)
        known = kept.given_up
        if known is not None and passage.invoked > known + kept.keep + EARLY:
            text = f"{passage.call} took the place of {kept.call}, which had expired"
            report("place", passage.invoked, queue, text)
    if len(used) > 1:
        taken = Period(since, max(passage.invoked for passage in used))
        # A loss of data includes the record of its first use, and its own instance might keep it again.
        if not any(loss.meets(taken) for loss in story.losses):
            text = f"{' and '.join(p.call for p in used)} took the place of {kept.call}"
            report("place", taken.end, queue, text)
    if not used and kept.given_up is not None and kept.was == "waiting" and kept.keep:
        _check_kept_in_vain(story, kept, asking, report)


def _check_kept_in_vain(story: Story, kept: Passage, asking: list[Passage], report: Report) -> None:
    """No call took it, although one asked for it while it was kept."""
    giving_up, given_up = kept.giving_up, kept.given_up
    assert giving_up is not None
    assert given_up is not None
    # A call might have taken it without learning of it.
    silent = [p for p in asking if p.entered is None and p.granted is None and p.how != "full"]
    if silent:
        return
    for passage in asking:
        came = passage.entered if passage.granted is None else passage.granted
        if came is None or passage.invoked <= given_up or came >= giving_up + kept.keep - EARLY:
            continue
        asked = Period(giving_up, came)
        troubles = [*story.disturbed(), *story.losses]
        if not any(trouble.meets(asked) for trouble in troubles):
            text = f"{passage.call} did not get the place of {kept.call}, which was kept"
            report("place", came, kept.queue, text)


def check_full(story: Story, queue: str, passages: list[Passage], report: Report) -> None:
    """`max_waiting` is enforced exactly: no call waits beyond it, and none is refused below it."""
    for passage in passages:
        most = passage.max_waiting
        if most is None:
            continue
        if passage.entered is not None and not passage.resumed:
            asked = Period(passage.invoked, passage.entered)
            if any(trouble.meets(asked) for trouble in story.disturbed()):
                continue
            before = sum(
                _surely_waits(story, other, asked) for other in passages if other is not passage
            )
            if before > most - 1:
                text = f"{passage.call} waits behind {before} others, and wanted fewer than {most}"
                report("full", passage.entered, queue, text)
        elif passage.how == "full" and passage.ended is not None:
            late = AT_ONCE + 3 * story.lag(Period(passage.invoked - 0.1, passage.ended))
            asked = Period(passage.invoked - late, passage.ended)
            if any(trouble.meets(asked) for trouble in story.disturbed()):
                continue
            there = sum(o.invoked <= asked.end and o.over >= asked.begin for o in passages) - 1
            least = most + min(story.limits(queue, asked))
            if there < least:
                text = f"{passage.call} was refused as the line was full, with {there} others there"
                report("full", passage.ended, queue, text)


def _surely_waits(story: Story, other: Passage, period: Period) -> bool:
    """Whether it waits in Redis during the whole period: a grant might be in flight."""
    if other.entered is None or other.entered > period.begin:
        return False
    granted = other.granted is not None or other.was == "holding"
    end = other.taken.begin if other.granted is not None else other.wait_end
    if granted and other.granted is None:
        return False
    return end > period.end and (other.granted is not None or other.was == "waiting")


def check_recovery(story: Story, report: Report) -> None:
    """No token lies in the half lease after the first sync that detected a loss of all data."""
    if story.offset is None:
        return
    offset, error = story.offset
    for queue in story.history.limits:
        tokens = sorted((p.token, p) for p in story.of(queue) if p.granted is not None)
        noticed = [r for r in story.registrations if r.queue == queue]
        for loss in story.total_losses:
            after = [r.redis for r in noticed if r.redis / 1e6 - offset > loss.end + error]
            first = min(after, default=math.inf)
            # A sync whose reply was lost might have detected it at any earlier time since the loss.
            end = (loss.begin + offset - error + story.lease / 2) * 1e6
            # The next loss of data also ends the window.
            following = [o.begin for o in story.losses if o.begin > loss.begin]
            gone = (min(following, default=math.inf) + offset - error) * 1e6
            for token, passage in tokens:
                if first < token < min(end, gone):
                    text = f"{passage.call} was granted {(token - first) / 1e6:.3f} s into the window"
                    report("window", passage.granted or 0.0, queue, text)
