"""Checks a history against three promises: each call ends once, the limit holds, nobody is overtaken.

The judge sees a run only from outside. It assumes no margin of time: a violation that it reports is
certain, however late a process recorded a step. In exchange, it might miss a fault that lasts for less
time than passes between a grant and its record.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable

from examples.call_centre_day.history import Event, History, Kind

COMPLETE: tuple[tuple[Kind, ...], ...] = (
    ("entering", "granted", "leaving", "left"),
    ("entering", "abandoned"),
    ("entering", "failed"),
)


def check_endings(history: History, call_ids: Iterable[str]) -> tuple[list[str], list[str]]:
    """Check that each call ended exactly once.

    Returns:
        The violations, and the calls that were cut off when their instance was killed.
    """
    steps_of: defaultdict[str, tuple[Kind, ...]] = defaultdict(tuple)
    for event in history.events:
        steps_of[event.call_id] += (event.kind,)
    violations: list[str] = []
    cut_off: list[str] = []
    for call_id in call_ids:
        steps = steps_of.pop(call_id, ())
        if steps in COMPLETE:
            continue
        if history.dispatched.get(call_id) in history.killed and any(
            steps == complete[: len(steps)] for complete in COMPLETE
        ):
            cut_off.append(call_id)
        else:
            violations.append(f"{call_id} did not end exactly once: {', '.join(steps) or 'nothing'}")
    violations += [
        f"{call_id} is not a call of this day: {', '.join(steps_of[call_id])}" for call_id in steps_of
    ]
    return violations, cut_off


def check_limit(history: History) -> list[str]:
    """Check that no slot was granted while as many were held as the limit allows.

    Grants are in the order of their fencing tokens. Call A certainly held its slot when B was granted
    one if A's token is smaller and A recorded `leaving` after B had recorded `granted`. A holder whose
    instance was killed held its slot until then. A holder that lost its slot is not counted, since the
    time of the loss is unknown.

    B's grant took place after the last time at which B certainly still waited, and before B recorded
    it. It is compared with the highest limit that might have been in force between the two. Only grants
    are checked, because a lowered limit takes no slot from a holder.
    """
    violations: list[str] = []
    entering, leaving = history.by_call("entering"), history.by_call("leaving")
    still_waiting = {
        call_id: snapshot.asked for snapshot in history.snapshots for call_id in snapshot.waiting
    }
    ends = [following.answered for following in history.limits[1:]] + [sys.maxsize]
    holders: list[tuple[int, Event]] = []  # each with the time until which it certainly held its slot
    earliest = 0
    token = -1
    for granted in sorted(history.by_call("granted").values(), key=lambda event: event.token):
        call_id = granted.call_id
        if granted.token == token:
            violations.append(f"{call_id} was granted the token {token}, which another has")
        token = granted.token
        # A grant is later than every grant with a smaller token.
        began = entering[call_id].at if call_id in entering else 0
        earliest = max(earliest, began, still_waiting.get(call_id, 0))
        allowed = max(
            (
                change.limit
                for change, end in zip(history.limits, ends, strict=True)
                if change.asked <= granted.at and end >= earliest
            ),
            default=0,
        )
        holders = [(until, event) for until, event in holders if until >= earliest]
        inside = [event.call_id for until, event in holders if until >= granted.at]
        if len(inside) >= allowed:
            violations.append(
                f"{call_id} (token {token}) was granted while the limit was {allowed} "
                f"and {len(inside)} held: {', '.join(inside) or 'nobody'}"
            )
        until = granted.at
        if call_id in leaving:
            until = granted.at if leaving[call_id].detail == "lost" else leaving[call_id].at
        elif granted.instance in history.killed:
            until = history.killed[granted.instance]
        holders.append((until, granted))
    return violations


class _Ahead:
    """The calls that entered before another, reduced to the two that decide whether it overtook one:
    the one granted last, and the one seen waiting last."""

    def __init__(self, granted: dict[str, Event], still_waiting: dict[str, int]) -> None:
        self._granted = granted
        self._still_waiting = still_waiting
        self._last_granted: Event | None = None
        self._last_waiting: tuple[int, str] = (-1, "")

    def add(self, call_id: str) -> None:
        granted = self._granted.get(call_id)
        if granted and (self._last_granted is None or granted.token > self._last_granted.token):
            self._last_granted = granted
        self._last_waiting = max(self._last_waiting, (self._still_waiting.get(call_id, -1), call_id))

    def overtaken_by(self, call_id: str) -> str:
        """Describe the violation if this call overtook one of them; empty if it did not."""
        granted, last = self._granted.get(call_id), self._last_granted
        if granted is None:
            return ""
        overtaker = f"{call_id} of instance {granted.instance} (token {granted.token}) overtook"
        if last is not None and last.token > granted.token:
            return f"{overtaker} {last.call_id} of instance {last.instance} (token {last.token})"
        if self._last_waiting[0] > granted.at:
            return f"{overtaker} {self._last_waiting[1]}, which was seen waiting afterwards"
        return ""


def check_order(history: History) -> list[str]:
    """Check that no call was granted a slot before a call that had entered earlier.

    Call A certainly entered before B if one of these holds:

    - Both entered through the same instance, A first.
    - A had recorded its grant, or was seen in the line, before B began to enter.
    - Both were seen waiting at once, A in front of B.

    Then B has overtaken A if A's fencing token is greater, or if A was seen waiting after B had
    recorded its grant. If A hangs up after B's grant, nothing is proved: A might have been granted a
    slot just before.
    """
    entering, granted = history.by_call("entering"), history.by_call("granted")
    in_line_by = {call_id: event.at for call_id, event in granted.items()}
    still_waiting: dict[str, int] = {}
    for snapshot in history.snapshots:
        for call_id in (*snapshot.waiting, *snapshot.holding):
            in_line_by[call_id] = min(snapshot.answered, in_line_by.get(call_id, sys.maxsize))
        still_waiting.update(dict.fromkeys(snapshot.waiting, snapshot.asked))

    violations: dict[str, str] = {}  # by the call that overtook: one violation each

    def add(call_id: str, violation: str) -> None:
        if violation:
            violations.setdefault(call_id, violation)

    ahead: defaultdict[str, _Ahead] = defaultdict(lambda: _Ahead(granted, still_waiting))
    for call_id, event in entering.items():
        add(call_id, ahead[event.instance].overtaken_by(call_id))
        ahead[event.instance].add(call_id)

    everywhere = _Ahead(granted, still_waiting)
    moments = [(event.at, 0, call_id) for call_id, event in entering.items()]
    moments += [(at, 1, call_id) for call_id, at in in_line_by.items()]
    for _, in_line, call_id in sorted(moments):
        if in_line:
            everywhere.add(call_id)
        else:
            add(call_id, everywhere.overtaken_by(call_id))

    for snapshot in history.snapshots:
        in_front = _Ahead(granted, {})
        for call_id in snapshot.waiting:
            add(call_id, in_front.overtaken_by(call_id))
            in_front.add(call_id)
    return list(violations.values())
