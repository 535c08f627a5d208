"""Reads a recorded day from a CSV file.

The columns are entered_s, call_id, service, waited_s, outcome, talked_s and agent; other columns are
ignored. Times are seconds; entered_s counts from midnight. The outcome is `answered` or `abandoned`. A
record does not hold everything that a replay needs. The rest is decided here:

- *Patience.* An abandoned call has the patience that it waited. An answered call waits as long as it
  takes: its record gives only a lower bound.
- *Talk of an abandoned call,* in case it is answered this time: drawn at random from the recorded talks
  of the same service.
- *Priority* is ignored. The line is first come, first served.
- *Agents* are on duty from the start of their first call to the end of their last. An answered call
  without a recorded agent had an agent who was on duty for that call only. The agents who are on duty
  last stay until the line is empty, so that no call waits for ever.

A replay therefore differs from the record. Real agents take breaks, write up calls and serve preferred
customers first. Here an agent on duty takes the next call at once.
"""

from __future__ import annotations

import csv
import math
import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from examples.call_centre_day.day import Call, CannotRunError, Day, LimitChange, Outcome

COLUMNS = ("entered_s", "call_id", "service", "waited_s", "outcome", "talked_s", "agent")


class Row(NamedTuple):
    """A line of the CSV file."""

    call_id: str
    service: str
    entered: float
    waited: float
    talked: float | None
    """None: abandoned."""
    agent: str

    @classmethod
    def parse(cls, fields: dict[str, str]) -> Row:
        if not fields["call_id"]:
            raise ValueError("call_id is empty")
        if fields["outcome"] not in ("answered", "abandoned"):
            raise ValueError(f"outcome must be answered or abandoned, not {fields['outcome']!r}")
        answered = fields["outcome"] == "answered"
        return cls(
            fields["call_id"],
            fields["service"],
            _seconds(fields, "entered_s"),
            _seconds(fields, "waited_s"),
            _seconds(fields, "talked_s") if answered else None,
            fields["agent"] if answered else "",
        )


def _seconds(fields: dict[str, str], column: str) -> float:
    try:
        value = float(fields[column])
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"{column} must be a number of seconds, not {fields[column]!r}")
    return value


def read_rows(path: Path) -> list[Row]:
    """The calls of a file in the order of entering.

    Raises:
        CannotRunError: the file cannot be read, holds no calls, or has a malformed row.
    """
    rows: dict[str, Row] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise CannotRunError(f"{path}: row 1: the header lacks {', '.join(missing)}")
            for fields in reader:
                try:
                    if None in fields or None in fields.values():
                        raise ValueError("it has another number of fields than the header")
                    row = Row.parse(fields)
                    if row.call_id in rows:
                        raise ValueError(f"call_id {row.call_id!r} is in the file twice")
                except ValueError as error:
                    raise CannotRunError(f"{path}: row {reader.line_num}: {error}") from None
                rows[row.call_id] = row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CannotRunError(f"{path}: {error}") from None
    if not rows:
        raise CannotRunError(f"{path}: there are no calls in it")
    return sorted(rows.values(), key=lambda row: row.entered)


def agents_on_duty(rows: Iterable[Row]) -> list[LimitChange]:
    """How many agents are on duty, and from when on."""
    shifts: dict[str, tuple[float, float]] = {}
    for row in rows:
        if row.talked is None:
            continue
        began = row.entered + row.waited
        agent = row.agent or f"of {row.call_id}"
        first, last = shifts.get(agent, (began, began))
        shifts[agent] = (min(first, began), max(last, began + row.talked))
    steps: defaultdict[float, int] = defaultdict(int)
    for first, last in shifts.values():
        steps[first] += 1
        steps[last] -= 1
    changes: list[LimitChange] = []
    agents = 0
    for at, step in sorted(steps.items()):
        agents += step
        if step:
            changes.append(LimitChange(at, agents))
    if shifts and not changes:  # every recorded talk took 0 s, but there must have been an agent
        return [LimitChange(min(steps), 1)]
    # The last change, to no agents, is left out: the last agents stay until the line is empty.
    return changes[:-1]


def read_day(path: Path, seed: int) -> Day:
    rows = read_rows(path)
    talks: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.talked is not None:
            talks[row.service].append(row.talked)
    all_talks = [talk for some in talks.values() for talk in some] or [0.0]
    chance = random.Random(seed)
    calls = [
        Call(row.call_id, row.entered, row.waited, chance.choice(talks[row.service] or all_talks))
        if row.talked is None
        else Call(row.call_id, row.entered, None, row.talked)
        for row in rows
    ]
    recorded = [Outcome(row.entered, row.waited, row.talked is not None) for row in rows]
    return Day(f"the day of {path.name}", calls, agents_on_duty(rows), recorded)
