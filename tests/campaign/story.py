"""What follows from a history: passages, who was out of touch when, which limits could be in force.

Nothing here judges. Where a history leaves something open (when exactly Redis carried out an
operation), what is derived is the interval in which it must lie, as in the checking of
linearizability: an operation takes effect between its invocation and its answer.
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
    """See the module's text."""

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
        self.strays: list[Event] = []  # of calls that never entered
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
        """When between `begin` and `end` Redis may not have known of `passage`: its instance's lease
        had lapsed, or the data was lost, until it had registered again; with `promised`, at the latest
        until it should have, if nothing kept it from that."""
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
        """From when on Redis had it; a process that stood still read the answer much later."""
        if passage.entered is None:
            return passage.invoked
        if passage.resumed:
            return passage.invoked
        if passage.place is None or self.offset is None:
            return passage.entered
        moment = passage.place / 1e6 + passage.head_start - self.offset[0] + self.offset[1]
        return max(passage.invoked, min(passage.entered, moment))

    def _due(self, who: str, since: float) -> float:
        """When `who` must have registered again: an interval after all that may keep it from that."""
        if since == math.inf:
            return since
        wait = self.lease / 3 + RECONNECT
        for begin, end in sorted(self.disturbed(who)):
            if begin <= since + wait:
                since = max(since, end)
        return since + wait + 3 * self.lag(Period(since, since + wait), who)

    def heard(self, passage: Passage, sent_after: float) -> float:
        """When its instance first had an answer to a heartbeat that was sent after that moment."""
        contact = self._contacts[passage.who, passage.queue]
        sent_after = max(sent_after, passage.listed)
        answers = (at for at, sent, _ in contact.beats if sent >= sent_after)
        return next(answers, math.inf)

    def disturbed(self, who: str = "") -> list[Period]:
        """When faults may be felt by an instance; with no name, when any may be felt by anybody."""
        worker = self.worker.get(who, who)
        return [
            disturbance.period
            for disturbance in self.disturbances
            if not who or disturbance.target in ("", worker)
        ]

    def lag(self, period: Period, who: str = "") -> float:
        """The longest time in `period` for which an event loop stood still, or an answer took.

        Those of others than `who` count if no fault explains them: then it was the machine.
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
        """Every limit that can have been in force at some moment of `period`."""
        return {
            value
            for value, begin, replaced in self._in_force[queue]
            if begin <= period.end and replaced >= period.begin
        }

    def limit_changes(self, queue: str) -> list[float]:
        """Moments at which what `limits` says may change."""
        settings = self._settings[queue]
        marks = [s.begin for s in settings] + [s.end for s in settings if s.end < math.inf]
        marks += [replaced for _, _, replaced in self._in_force[queue] if replaced < math.inf]
        return marks + [mark for loss in self.losses for mark in loss]

    def _find_in_force(self) -> None:
        """From when until when each number can have been in force."""
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
        """From when on another setting is surely in force.

        What was in force up to a heartbeat before a loss of data may be what an instance registers
        again, a stopped one what was in force when it was stopped. If no instance was in the queue, no
        override is: then the call sites' limit comes back.
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
        """Until when what failed may still be carried out: no proxy holds what the operator says, so it
        comes as soon as the server is there again, or never."""
        asked = Period(setting.begin, setting.end)
        troubles = [d.period.end for d in self.disturbances if not d.target and d.period.meets(asked)]
        return max([setting.end + self.lease, *troubles])

    def _felt(self, loss: Period) -> float:
        """For how long before a loss some instance may have been out of touch."""
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
                    self.strays.append(event)
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
            elif kind == "fence":
                self._contacts[who, queue].fences.append((at, more["until"]))
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
        """Whether the machine stood still so long that a few turns of several processes take as
        long as an operation may."""
        return self.lag(period, who) > self.lease / 12

    def _note_busy_times(self, events: Iterable[Event]) -> None:
        """A connection that is given up because the machine was too busy is a fault like any other:
        what was said on it may arrive late, and be found by a heartbeat or when the lease lapses."""
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
        """One that found nobody evicted nobody, unless a fault came between it and its answer."""
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
            self.strays.append(event)
            return
        if kind not in ("given_up", "resumed"):  # the reply to a leave comes when it likes
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
            fence = more.get("fence")
            passage.lost_noticed = at
            passage.lost = at if fence is None else min(at, fence)
            passage.reason = more["reason"]
        elif kind == "end" and passage.ended is None:
            passage.ended, passage.how = at, more["how"]

    def _end_the_killed(self) -> None:
        for passage in self.passages.values():
            killed = self._killed.get(passage.who)
            if killed is None or (passage.ended is not None and passage.ended <= killed):
                continue
            if any(period.end == math.inf for period in self.stopped[passage.who]):
                # It did nothing any more, and had it looked, it had known from its fence on.
                fences = self._contacts[passage.who, passage.queue].fences
                killed = min([killed, max((until for _, until in fences), default=killed)])
            passage.killed = killed

    def _narrow_grants(self) -> None:
        """Bounds the moment of every grant in Redis. Tokens are given in Redis' order, so a
        grant comes after the invocation of all with smaller ones, before the answer of all greater."""
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
                    passage.evicted = None  # there was no answer, and it was never carried out

    def _offset(self) -> tuple[float, float] | None:
        """Redis' clock minus the shared one, if it stayed the same throughout."""
        if not self._clocks:
            return None
        offset = sum(offset for offset, _ in self._clocks) / len(self._clocks)
        error = max(error + abs(offset - other) for other, error in self._clocks)
        return (offset, error) if error < 0.02 else None


def _narrowed(period: Period, token: int, offset: tuple[float, float] | None) -> Period:
    """Tokens are Redis' microseconds, unless they were pushed up; the clocks may tell more."""
    if offset is None:
        return period
    moment, error = token / 1e6 - offset[0], offset[1]
    narrow = Period(max(period.begin, moment - error), min(period.end, moment + error))
    return narrow if narrow.begin <= narrow.end else period
