"""A second implementation of the queue, as a model of its state after each operation."""

from __future__ import annotations

from genesis.backends.protocol import (
    EnterRequest,
    EnterResult,
    LeaveResult,
    Ticket,
)
from tests.schedules.calls import Violation

__all__ = ["Line", "Model"]


class Line:
    """The expected state of one queue."""

    def __init__(self) -> None:
        self.waiting: list[Ticket] = []
        self.holding: list[Ticket] = []
        self.named: int | None = None


class Model:
    """The expected state of all queues; the probe reports each operation to it."""

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {}
        self.overrides: dict[str, int] = {}
        self.closed = False
        self.broken: Violation | None = None  # found inside a task
        self.evicted: set[str] = set()  # tickets, in either state

    def fail(self, text: str) -> None:
        self.broken = self.broken or Violation(text)

    def limit(self, queue_id: str) -> int:
        line = self.lines.get(queue_id)
        return self.overrides.get(queue_id, (line.named if line else None) or 1)

    def enter(self, entry: EnterRequest, result: EnterResult) -> None:
        line = self.lines.setdefault(entry.queue_id, Line())
        if entry.limit is not None:
            line.named = entry.limit
        self.grant(entry.queue_id)
        ticket, depth = result.ticket, len(line.waiting)
        free = not depth and len(line.holding) < self.limit(entry.queue_id)
        if free:
            line.holding.append(ticket)
        elif entry.max_waiting is None:
            line.waiting.append(ticket)
            depth += 1
        state = "granted" if result.grant else "waiting" if result.position else "refused"
        expected = "granted" if free else "waiting" if entry.max_waiting is None else "refused"
        if (state, result.depth) != (expected, depth) or result.position not in (0, depth):
            self.fail(f"{entry.item_id}: {result}, not {expected} at depth {depth}")
        self.forget(entry.queue_id)

    def leave(self, ticket: Ticket, result: LeaveResult) -> None:
        line = self.lines.get(ticket.queue_id, Line())
        was = "holding" if ticket in line.holding else "waiting" if ticket in line.waiting else None
        self.remove(ticket)
        granted = len(self.grant(ticket.queue_id))
        self.forget(ticket.queue_id)
        if (result.was, len(result.granted_to)) != (was, granted):
            self.fail(f"{ticket.item_id} left {was}, {granted} were granted; told: {result}")

    def set_limit(self, queue_id: str, limit: int | None) -> None:
        if limit is None:
            self.overrides.pop(queue_id, None)
        else:
            self.overrides[queue_id] = limit
        self.grant(queue_id)

    def evict(self, queue_id: str, item_id: str, count: int) -> None:
        line = self.lines.get(queue_id, Line())
        out = [t for t in line.waiting + line.holding if t.item_id == item_id]
        for ticket in out:
            self.evicted.add(ticket.id)
            self.remove(ticket)
        self.grant(queue_id)
        self.forget(queue_id)
        if count != len(out):
            self.fail(f"evict({item_id}) said {count}, there were {len(out)}")

    def close(self) -> None:
        self.closed = True
        self.lines.clear()

    def remove(self, ticket: Ticket) -> None:
        line = self.lines.get(ticket.queue_id)
        if line is not None:
            line.waiting = [t for t in line.waiting if t != ticket]
            line.holding = [t for t in line.holding if t != ticket]

    def grant(self, queue_id: str) -> list[Ticket]:
        granted = []
        line = self.lines.get(queue_id)
        while line and line.waiting and len(line.holding) < self.limit(queue_id):
            granted.append(line.waiting.pop(0))
            line.holding.append(granted[-1])
        return granted

    def forget(self, queue_id: str) -> None:
        line = self.lines.get(queue_id)
        if line is not None and not line.waiting and not line.holding:
            del self.lines[queue_id]
