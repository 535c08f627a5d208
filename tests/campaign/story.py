"""What follows from a history: passages, who was disconnected when, which limits might be in force.

This module makes no judgement. Where a history does not determine a time (when exactly Redis ran an
operation), it derives the interval in which the time must lie. As in linearizability checking, an
operation takes effect between its invocation and its reply.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from tests.campaign.history import CONDUCTOR, Event, History
from tests.campaign.passages import (
    Contact,
    Eviction,
    Passage,
    Registration,
    Setting,
)
from tests.campaign.periods import (
    RECONNECT,
    Disturbance,
    Period,
    prolong_reconnects,
    subtract,
)

__all__ = ["Disturbance", "Period", "Story", "subtract"]


_OF_CALLS = ("entered", "resumed", "grant", "giving_up", "given_up", "leave", "lost", "end")


class Story:
    """See the module docstring."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.lease = history.lease
        self.passages: dict[str, Passage] = {}
        self.losses: list[Period] = []
        self.total_losses: list[Period] = []  # those of all data
        self.registrations: list[Registration] = []
        self.disturbances: list[Disturbance] = []
        self._lags: dict[int, list[tuple[str, Period]]] = defaultdict(list)  # by the second
        self.worker: dict[str, str] = {}  # of an instance
        self.stopped: dict[str, list[Period]] = defaultdict(list)
        self.unmatched: list[Event] = []  # of calls that never entered
        self._contacts: dict[tuple[str, str], Contact] = defaultdict(Contact)
        self._settings: dict[str, list[Setting]] = defaultdict(list)
        self._in_force: dict[str, list[tuple[int, float, float]]] = {}
        self._clocks: list[tuple[float, float]] = []
        self._killed: dict[str, float] = {}
        self._evictions: list[Eviction] = []
        self._take_in(history.events)
        self.offset = self._offset()
        self._note_evictions()
        self._end_the_killed()
        self._note_busy_times(history.events)
        self.disturbances = prolong_reconnects(self.disturbances)
        self._find_in_force()
        self._narrow_grants()

    def of(self, queue: str) -> list[Passage]:
        return [passage for passage in self.passages.values() if passage.queue == queue]

    def unregistered(
        self,
        passage: Passage,
        begin: float,
        end: float,
        *,
        losses_only: bool = False,
        promised: bool = True,
    ) -> list[Period]:
        """When between `begin` and `end` Redis might not have known `passage`: its instance's lease had
        lapsed, or the data was lost, until it had registered again. With `promised`, at most until it
        should have registered, if nothing prevented that."""
        contact = self._contacts[passage.who, passage.queue]
        listed = passage.listed
        lost = [
            (loss.begin, max(loss.end, listed))
            for loss in self.losses
            if passage.invoked <= loss.end and loss.begin <= end
        ]
        if not losses_only:
            # A lease that had lapsed before the call was made was renewed by the sync that listed it.
            since = self._stood(passage)
            lapses = (lapse for lapse in contact.lapses(since, end) if lapse >= passage.invoked)
            lost += [(lapse, max(lapse, listed)) for lapse in lapses]
        periods = []
        for gone, back in lost:
            known = contact.registered(back)
            if promised:
                known = min(known, self._due(passage.who, back))
            periods.append(Period(gone, known))
        return [period for period in periods if period.meets(Period(begin, end))]

    def _stood(self, passage: Passage) -> float:
        """When Redis had it; a stopped process reads the reply much later."""
        if passage.entered is None:
            return passage.invoked
        if passage.resumed:
            return passage.invoked
        if passage.place is None or self.offset is None:
            return passage.entered
        moment = passage.place / 1e6 + passage.head_start - self.offset[0] + self.offset[1]
        return max(passage.invoked, min(passage.entered, moment))

    def _due(self, who: str, since: float) -> float:
        """When `who` must have registered again: an interval after everything that might prevent it."""
        if since == math.inf:
            return since
        wait = self.lease / 3 + RECONNECT
        for begin, end in sorted(self.disturbed(who)):
            if begin <= since + wait:
                since = max(since, end)
        return since + wait + 3 * self.lag(Period(since, since + wait), who)

    def reply_read(self, passage: Passage, sent_after: float) -> float:
        """When its instance first read a reply to a heartbeat sent after `sent_after`."""
        contact = self._contacts[passage.who, passage.queue]
        sent_after = max(sent_after, passage.listed)
        answers = (at for at, sent, _ in contact.beats if sent >= sent_after)
        return next(answers, math.inf)

    def disturbed(self, who: str = "") -> list[Period]:
        """When faults might affect an instance; without a name, any instance."""
        worker = self.worker.get(who, who)
        return [
            disturbance.period
            for disturbance in self.disturbances
            if not who or disturbance.target in ("", worker)
        ]

    def lag(self, period: Period, who: str = "") -> float:
        """The longest stall of an event loop, or delay of a reply, in `period`.

        Stalls of instances other than `who` count if no fault explains them: then the machine stalled.
        """
        last = math.floor(min(period.end, self.history.events[-1].at))
        seconds = range(math.floor(period.begin), last + 1)
        return max(
            (
                lag.end - lag.begin
                for second in seconds
                for name, lag in self._lags.get(second, ())
                if lag.meets(period) and (name in (who, CONDUCTOR) or self._of_machine(name, lag))
            ),
            default=0.0,
        )

    def _note_lag(self, who: str, begin: float, end: float) -> None:
        for second in range(math.floor(begin), math.floor(end) + 1):
            self._lags[second].append((who, Period(begin, end)))

    def _of_machine(self, who: str, lag: Period) -> bool:
        return not any(trouble.meets(lag) for trouble in self.disturbed(who))

    def limits(self, queue: str, period: Period) -> set[int]:
        """Every limit that might have been in force at some moment of `period`."""
        return {
            value
            for value, begin, replaced in self._in_force[queue]
            if begin <= period.end and replaced >= period.begin
        }

    def limit_changes(self, queue: str) -> list[float]:
        """The times at which the result of `limits` might change."""
        settings = self._settings[queue]
        marks = [s.begin for s in settings] + [s.end for s in settings if s.end < math.inf]
        marks += [replaced for _, _, replaced in self._in_force[queue] if replaced < math.inf]
        return marks + [mark for loss in self.losses for mark in loss]

    def _find_in_force(self) -> None:
        """Compute when each limit might have been in force."""
        felt = [(loss, self._felt(loss)) for loss in self.losses]
        for queue, limit in self.history.limits.items():
            base = Setting(limit, -math.inf, -math.inf, sure=True)
            settings = [base, *self._settings[queue]]
            self._in_force[queue] = [
                (s.value, s.begin, self._replaced(s, settings, felt, forgotten=s is base))
                for s in settings
            ]

    def _replaced(
        self,
        setting: Setting,
        settings: list[Setting],
        losses: list[tuple[Period, float]],
        *,
        forgotten: bool,
    ) -> float:
        """When another setting is certainly in force.

        After a loss of data an instance might register the override that was in force up to a heartbeat
        before; a stopped instance, the override of the time when it was stopped. If no instance was in
        the queue, there is no override, and the call sites' limit is in force.
        """
        until = setting.end if setting.sure else self._may_come_until(setting)
        settings = [s for s in settings if s.sure]
        replaced = min((s.end for s in settings if s.begin > until), default=math.inf)
        for loss, felt in losses:
            remembered = forgotten or loss.begin - self.lease - felt <= replaced
            if remembered and loss.end >= setting.begin:
                anew = min((s.end for s in settings if s.begin > loss.end), default=math.inf)
                replaced = max(replaced, anew)
        return replaced

    def _may_come_until(self, setting: Setting) -> float:
        """Until when a failed command might still be run: no proxy holds the operator's commands, so it
        is run as soon as the server is back, or never."""
        asked = Period(setting.begin, setting.end)
        troubles = [d.period.end for d in self.disturbances if not d.target and d.period.meets(asked)]
        return max([setting.end + self.lease, *troubles])

    def _felt(self, loss: Period) -> float:
        """For how long before a loss some instance might have been disconnected."""
        began = [d.period.begin for d in self.disturbances if d.period.meets(loss)]
        return loss.begin - min([*began, loss.begin])

    def _take_in(self, events: Iterable[Event]) -> None:
        open_faults: dict[int, Event] = {}
        open_losses: dict[int, Event] = {}
        limits: dict[tuple[str, int], tuple[Event, int]] = {}
        for event in events:
            at, kind, who, queue, call, more = event
            if kind == "enter":
                if call in self.passages:
                    self.unmatched.append(event)
                else:
                    passage = Passage(call, queue, who, at, more.get("timeout"))
                    passage.head_start = more.get("head_start", 0.0)
                    passage.max_waiting = more.get("max_waiting")
                    passage.place_of = more.get("place_of", "")
                    self.passages[call] = passage
            elif kind == "evict":
                self._evictions.append(Eviction(who, call, at))
            elif kind == "evicted":
                for index, said in enumerate(self._evictions):
                    if (said.who, said.call, said.found) == (who, call, None):
                        self._evictions[index] = said._replace(answered=at, found=more["count"])
            elif kind in _OF_CALLS:
                self._of_call(event)
            elif kind == "up":
                self.worker[who] = more["worker"]
            elif kind == "deadline":
                self._contacts[who, queue].deadlines.append((at, more["until"]))
            elif kind == "beat":
                self._contacts[who, queue].beats.append((at, more["sent"], more["unknown"]))
                self._note_lag(who, more["sent"], at)
            elif kind == "restored":
                self._contacts[who, queue].restored.append(at)
                if more.get("data_lost"):
                    self.registrations.append(Registration(queue, at, more["redis"]))
            elif kind == "lag":
                self._note_lag(who, at - more["seconds"], at)
            elif kind == "kill":
                self._killed[who] = at
            elif kind == "stop":
                self.stopped[who].append(Period(at, math.inf))
            elif kind == "cont" and self.stopped[who]:
                self.stopped[who][-1] = Period(self.stopped[who][-1].begin, at)
            elif kind == "limit":
                limits[who, more["id"]] = (event, len(self._settings[queue]))
                value = self.history.limits[queue] if more["value"] is None else more["value"]
                self._settings[queue].append(Setting(value, at, math.inf))
            elif kind == "limited":
                _, index = limits[who, more["id"]]
                setting = self._settings[queue][index]
                self._settings[queue][index] = setting._replace(end=at, sure=more["ok"])
            elif kind == "fault":
                open_faults[more["id"]] = event
            elif kind == "fault_end":
                self._fault(open_faults.pop(more["id"]), at)
            elif kind == "loss":
                open_losses[more["id"]] = event
            elif kind == "loss_end":
                begun = open_losses.pop(more["id"])
                self.losses.append(Period(begun.at, at))
                if begun.more.get("all"):
                    self.total_losses.append(self.losses[-1])
            elif kind == "clock":
                self._clocks.append((more["offset"], more["error"]))
        for fault in open_faults.values():
            self._fault(fault, math.inf)
        self.losses += [Period(begun.at, math.inf) for begun in open_losses.values()]

    def busy(self, period: Period, who: str = "") -> bool:
        """Whether the machine stalled so long that a few iterations of several processes take as long
        as an operation is allowed to."""
        return self.lag(period, who) > self.lease / 12

    def _note_busy_times(self, events: Iterable[Event]) -> None:
        """A connection given up because the machine was too busy is a fault like any other: commands on
        it might arrive late, and be found by a heartbeat or when the lease lapses."""
        timeout, late = self.lease / 3, 4 / 3 * self.lease + 0.3
        found = [
            Disturbance("busy", self.worker[event.who], Period(event.at - timeout, event.at + late))
            for event in events
            if event.kind == "disrupted"
            and event.more["reason"] == "timeout"
            and self.busy(Period(event.at - timeout, event.at), event.who)
        ]
        self.disturbances += found

    def _note_evictions(self) -> None:
        """An eviction that found no ticket evicted none, unless a fault occurred before its reply."""
        for said in reversed(self._evictions):
            asked = Period(said.at, said.answered)
            in_vain = said.found == 0 and not any(d.period.meets(asked) for d in self.disturbances)
            if said.call in self.passages and not in_vain:
                self.passages[said.call].evicted = said.at
            if said.call in self.passages and said.found:
                self.passages[said.call].surely_evicted = said.answered

    def _fault(self, begun: Event, end: float) -> None:
        more: Any = begun.more
        period = Period(begun.at, end + more["settle"])
        self.disturbances.append(Disturbance(more["name"], more["target"], period))

    def _of_call(self, event: Event) -> None:
        at, kind, _, _, call, more = event
        passage = self.passages.get(call)
        if passage is None:
            self.unmatched.append(event)
            return
        if kind not in ("given_up", "resumed"):  # the reply to a leave can come at any time
            passage.events.append(kind)
        if kind == "entered":
            passage.entered, passage.place = at, more.get("place")
            passage.resumed = more.get("resumed", False)
        elif kind == "resumed":
            passage.resumed = True
        elif kind == "grant" and passage.granted is None:
            passage.granted, passage.token = at, more["token"]
        elif kind == "giving_up":
            passage.giving_up, passage.keep = at, more.get("keep", 0.0)
        elif kind == "given_up":
            passage.given_up, passage.was = at, more["was"]
        elif kind == "leave":
            passage.leaving = at
        elif kind == "lost" and passage.lost is None:
            deadline = more.get("deadline")
            passage.lost_noticed = at
            passage.lost = at if deadline is None else min(at, deadline)
            passage.reason = more["reason"]
        elif kind == "end" and passage.ended is None:
            passage.ended, passage.how = at, more["how"]

    def _end_the_killed(self) -> None:
        for passage in self.passages.values():
            killed = self._killed.get(passage.who)
            if killed is None or (passage.ended is not None and passage.ended <= killed):
                continue
            if any(period.end == math.inf for period in self.stopped[passage.who]):
                # A stopped process reads no `lost`, but it would have been true from the deadline on.
                deadlines = self._contacts[passage.who, passage.queue].deadlines
                killed = min([killed, max((until for _, until in deadlines), default=killed)])
            passage.killed = killed

    def _narrow_grants(self) -> None:
        """Bound the time of every grant in Redis. Tokens are in Redis's order: a grant comes after the
        invocation of all grants with smaller tokens, and before the reply of all with greater ones."""
        for queue in self.history.limits:
            granted = sorted(
                (p for p in self.of(queue) if p.granted is not None), key=lambda p: p.token
            )
            begin = -math.inf
            begins = [begin := max(begin, passage.invoked) for passage in granted]
            end = math.inf
            for passage, begin in zip(reversed(granted), reversed(begins), strict=True):
                assert passage.granted is not None
                end = min(end, passage.granted)
                passage.taken = _narrowed(Period(begin, end), passage.token, self.offset)
                evicted = passage.evicted if passage.surely_evicted is None else None
                if evicted is not None and evicted < passage.taken.begin and passage.lost is None:
                    passage.evicted = None  # there was no reply, and it was never run

    def _offset(self) -> tuple[float, float] | None:
        """Redis's clock minus the shared clock, if the difference was constant."""
        if not self._clocks:
            return None
        offset = sum(offset for offset, _ in self._clocks) / len(self._clocks)
        error = max(error + abs(offset - other) for other, error in self._clocks)
        return (offset, error) if error < 0.02 else None


def _narrowed(period: Period, token: int, offset: tuple[float, float] | None) -> Period:
    """Narrow the period by the token, which is Redis's time in us unless it was incremented."""
    if offset is None:
        return period
    moment, error = token / 1e6 - offset[0], offset[1]
    narrow = Period(max(period.begin, moment - error), min(period.end, moment + error))
    return narrow if narrow.begin <= narrow.end else period
