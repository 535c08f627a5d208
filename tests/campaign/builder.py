"""Builds histories by hand, for the tests of the checker."""

from __future__ import annotations

from typing import Any

from tests.campaign.checker import check
from tests.campaign.history import CONDUCTOR, Event, History
from tests.campaign.verdict import RULES

LEASE = 3.0


class HistoryBuilder:
    """Builds a history with a queue "q" of limit 1 and a queue "two" of limit 2."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._tokens = 0
        self._numbers = 0

    def add(
        self, at: float, kind: str, who: str = "", queue: str = "", call: str = "", **more: Any
    ) -> None:
        self.events.append(Event(at, kind, who, queue, call, more))

    def call(
        self,
        name: str,
        enter: float,
        *,
        who: str = "a",
        queue: str = "q",
        entered: float | None = None,
        place: int | None = None,
        grant: float | None = None,
        token: int | None = None,
        leave: float | None = None,
        end: float | None = None,
        how: str = "released",
        timeout: float | None = None,
        was: str | None = "waiting",
    ) -> None:
        """Add one call. A step without a time did not happen; a leave also ends the call."""
        where = (who, queue, name)
        self.add(enter, "enter", *where, timeout=timeout)
        if entered is not None:
            self.add(entered, "entered", *where, place=place)
            self.add(entered, "deadline", who, queue, until=entered + LEASE)
        if grant is not None:
            self._tokens += 1
            self.add(grant, "grant", *where, token=self._tokens if token is None else token)
        elif end is not None and entered is not None:
            self.add(end, "giving_up", *where)
            self.add(end, "given_up", *where, was=was)
        if leave is not None:
            self.add(leave, "leave", *where, lost=False)
            end = leave if end is None else end
        if end is not None:
            self.add(end, "end", *where, how=how)

    def fault(
        self, begin: float, end: float, target: str = "", settle: float = 0.0, name: str = "x"
    ) -> None:
        self._numbers += 1
        self.add(begin, "fault", CONDUCTOR, id=self._numbers, name=name, target=target, settle=settle)
        self.add(end, "fault_end", CONDUCTOR, id=self._numbers, effect=1)

    def loss(self, begin: float, end: float) -> None:
        self._numbers += 1
        self.add(begin, "loss", CONDUCTOR, id=self._numbers)
        self.add(end, "loss_end", CONDUCTOR, id=self._numbers)

    def limit(self, at: float, answered: float, value: int | None, ok: bool = True) -> None:
        self._numbers += 1
        self.add(at, "limit", CONDUCTOR, "q", id=self._numbers, value=value)
        self.add(answered, "limited", CONDUCTOR, "q", id=self._numbers, ok=ok)

    def beat(self, at: float, sent: float, who: str = "a", unknown: int = 0, queue: str = "q") -> None:
        self.add(at, "deadline", who, queue, until=sent + LEASE)
        self.add(at, "beat", who, queue, sent=sent, unknown=unknown)

    def history(self) -> History:
        return History.of(LEASE, {"q": 1, "two": 2}, self.events)

    def rules(self) -> list[str]:
        """The names of the violated rules, without duplicates."""
        found = {violation.rule for violation in check(self.history()).violations}
        assert found <= set(RULES)
        return sorted(found)
