"""The heartbeat: renews the lease of this instance, and compares what both sides believe.

One timer for the whole instance. It beats every line once an interval (a third of the lease) and
sooner where Redis said so: when the earliest lease of another instance may lapse, when a recovery
window ends. A beat is a script call a line, whatever the number of its waiters (one a thousand
tickets), and its reply mends everything that can go wrong between two processes and a server:

    Redis shows                    the ledger has   cause                          what is done
    -----------------------------  ---------------  -----------------------------  -------------------
    granted                        waiting          the message was lost           take the grant
    evicted                        any              the message was lost           tell its task
    reaped                         holding          stopped for longer than the lease  tell its task
    nothing, the epoch is new      any              Redis lost its data            register again
    nothing, the epoch is the old  waiting          reaped in a pause              register again
    reaped, after a grant          waiting          stopped before it knew of it   register again
    nothing, the epoch is the old  holding          a stale replica was promoted   register again ...
                                   ... past fence   reaped in a long pause         ... unless lost
    a ticket                       nothing          a command arrived late         leave

Waiters register again with their old numbers, so they stand where they stood.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from genesis.backends.protocol import (
    BackendEvent,
    Disrupted,
    Heartbeat,
    QueueStats,
    Snapshot,
)
from genesis.backends.redis.cluster import ClusterLink
from genesis.backends.redis.ledger import Ledger, Line, Passage, Stage
from genesis.backends.redis.link import Link, Refused, Unreachable
from genesis.backends.redis.scripts import load
from genesis.backends.waiting import fail
from genesis.exceptions import BackendUnavailableError

__all__ = ["Heart"]

_PAGE = 1000  # tickets a script call: about a millisecond inside Redis
_GRACE = 0.01  # seconds after a deadline of Redis', so that it has passed when we ask


class Heart:
    """See the module's text.

    Args:
        lease: seconds.
        constants: what every script is told: the lease in microseconds, the channel prefix.
        say_leave: takes a ticket that is not ours out of a line.
    """

    def __init__(
        self,
        link: Link | ClusterLink,
        ledger: Ledger,
        instance_id: str,
        lease: float,
        constants: tuple[bytes, bytes],
        say_leave: Callable[[Line, str], None],
        emit: Callable[[BackendEvent], None],
    ) -> None:
        self._link = link
        self._ledger = ledger
        self._instance = instance_id.encode()
        self._lease = lease
        self._constants = constants
        self._say_leave = say_leave
        self._emit = emit
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0  # of `_timer`; uvloop handles might have no `when()`
        self._stopped = False

    def schedule(self, line: Line, delay: float) -> None:
        """Beat `line` in `delay` seconds, or when it is due if that is sooner."""
        line.due = min(line.due, self._loop.time() + delay)
        self._wake_at(line.due)

    def beat_all_waiting(self) -> None:
        """Wake-ups may have been lost: ask at once about every line in which somebody waits."""
        for line in self._ledger.lines.values():
            if any(p.stage is Stage.WAITING for p in line.passages.values()):
                self.schedule(line, 0.0)

    def beat_all(self) -> None:
        """The server may be another one, or may have lost its data: ask at once about every line."""
        for line in self._ledger.lines.values():
            self.schedule(line, 0.0)

    def stop(self) -> None:
        self._stopped = True  # answers that still come must not set the timer again
        if self._timer is not None:
            self._timer.cancel()

    def _wake_at(self, when: float) -> None:
        if self._stopped:
            return
        if self._timer is not None:
            if self._timer_due <= when and not self._timer.cancelled():
                return
            self._timer.cancel()
        self._timer_due = when
        self._timer = self._loop.call_at(when, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        for line in list(self._ledger.lines.values()):
            if now >= line.fence:
                self._past_fence(line)
            if now < line.due:
                continue
            if line.beating:
                # Unanswered: the link will decide. What was asked for meanwhile comes after it.
                line.pressed = True
                line.due = now + self._lease / 3
            else:
                self._beat(line)
        lines = self._ledger.lines.values()
        if lines:
            self._wake_at(min(self._next_look(line, now) for line in lines))

    def _next_look(self, line: Line, now: float) -> float:
        # A fence that has passed has done its work, until a renewal sets it anew.
        return min(line.due, line.fence) if line.fence > now else line.due

    def _past_fence(self, line: Line) -> None:
        self._ledger.lapse(line)
        trouble = line.refused or self._link.trouble(line.keys)
        if not trouble:
            return  # only this process was late; the beat will tell what became of the waiters
        for passage in line.passages.values():
            if passage.stage is Stage.WAITING and passage.future is not None:
                fail(passage.future, self._given_up(passage, trouble))

    def _given_up(self, passage: Passage, trouble: str) -> BackendUnavailableError:
        ticket = passage.ticket
        return BackendUnavailableError(
            "redis",
            "wait",
            f"it has renewed nothing for longer than the lease of {self._lease:g} s "
            f"({trouble}), so the place in line is lost",
            ticket.queue_id,
            ticket.item_id,
        )

    def _beat(self, line: Line) -> None:
        # Tickets that entered but have no reply yet are counted, not listed: whether they wait or
        # hold is not known here, but they are in Redis by the time it reads this.
        waiting = [k for k, p in line.passages.items() if p.stage is Stage.WAITING]
        holding = [k for k, p in line.passages.items() if p.stage is Stage.HOLDING]
        entering = sum(p.stage is Stage.ENTERING for p in line.passages.values())
        total = len(waiting) + len(holding) + entering
        tickets = waiting + holding
        pages = [tickets[i : i + _PAGE] for i in range(0, len(tickets), _PAGE)] or [[]]
        line.beating = True
        sent = self._loop.time()
        # What comes after this beat is due after the next: set before the reply, which may be lost.
        line.due = sent + self._lease / 3
        left = len(waiting)
        for number, page in enumerate(pages, 1):
            last = number == len(pages)
            arguments = (
                self._instance,
                line.epoch,
                *self._constants,
                str(total).encode() if last else b"",
                str(max(0, min(left, len(page)))).encode(),
                *(ticket.encode() for ticket in page),
            )
            left -= len(page)
            answer = partial(self._on_beat, line, sent, bool(page), last)
            self._link.call(load("heartbeat"), line.keys, arguments, on_answer=answer)

    def _on_beat(self, line: Line, sent: float, renewed: bool, last: bool, reply: Any) -> None:
        failed = isinstance(reply, Unreachable)
        if last:
            line.beating = False
            self._emit(Heartbeat(self._loop.time() - sent, "error" if failed else "ok"))
        if failed:
            self._note_refusal(line, "heartbeat", reply)
            self._wake_at(line.due)
            return
        line.refused = ""
        epoch, look, shared, missed, ended, unknown, surplus, granted, reclaimed = reply
        if renewed:
            self._ledger.renewed(line, sent)
        known, line.epoch = line.epoch, epoch
        self._absorb_corrections(missed, ended)
        self._ledger.absorb(line.queue_id, granted, reclaimed)
        self._restore(line, known, unknown)
        strangers = [ticket_id for raw in surplus if self._is_over(ticket_id := raw.decode())]
        for ticket_id in strangers:
            self._say_leave(line, ticket_id)
        if last:
            line.suspect = bool(strangers)
        waiting, in_use, limit, oldest, override, override_at = shared
        line.override = (override, override_at)
        stats = QueueStats(waiting, in_use, int(limit), oldest / 1e6)
        self._emit(Snapshot(line.queue_id, stats))
        self._look_again(line, 0 if last and line.pressed else look)
        line.pressed = line.pressed and not last
        self._ledger.drop_if_idle(line)

    def _is_over(self, ticket_id: str) -> bool:
        passage = self._ledger.find(ticket_id)
        # Ended by others while its task still works: a stray copy of its enter may have come since.
        return passage is None or passage.stage is Stage.GONE

    def _note_refusal(self, line: Line, what: str, reply: Unreachable) -> None:
        if isinstance(reply, Refused):
            if not line.refused:
                self._emit(Disrupted("refused", f"queue {line.queue_id!r}: {what}: {reply}"))
            line.refused = str(reply)

    def _absorb_corrections(self, missed: Any, ended: Any) -> None:
        for raw, token in missed:
            passage = self._ledger.find(raw.decode())
            if passage is not None:
                self._ledger.grant(passage, int(token), None)
        for raw, reason in ended:
            passage = self._ledger.find(raw.decode())
            if passage is not None:
                self._ledger.ended(passage, "reaped" if reason == b"reaped" else "evicted")

    def _look_again(self, line: Line, microseconds: int) -> None:
        self.schedule(line, microseconds / 1e6 + _GRACE)

    def _restore(self, line: Line, known: bytes, unknown: list[bytes]) -> None:
        """Register again what Redis does not know; see the table above."""
        data_lost = known not in (b"", line.epoch)
        rows: list[bytes] = []
        for raw in unknown:
            passage = self._ledger.find(raw.decode())
            if passage is None:
                continue
            if passage.stage is Stage.WAITING:
                self._ledger.doubt(passage)  # whatever message is still under way to it is of before
                state = b"waiting"
            elif passage.stage is Stage.HOLDING and (data_lost or not passage.lost):
                state = b"holding"
            else:
                passage.stage = Stage.GONE
                continue
            rows += (raw, state, str(passage.number).encode(), passage.blob)
        if rows and data_lost:
            self._emit(Disrupted("data_lost", f"queue {line.queue_id!r} registers again"))
        for start in range(0, len(rows), 4 * _PAGE):
            page = rows[start : start + 4 * _PAGE]
            arguments = (
                self._instance,
                known,
                *self._constants,
                line.limit,
                *line.override,
                *page,
            )
            answer = partial(self._on_restored, line, self._loop.time())
            self._link.call(load("restore"), line.keys, arguments, on_answer=answer)

    def _on_restored(self, line: Line, sent: float, reply: Any) -> None:
        if isinstance(reply, Unreachable):
            self._note_refusal(line, "registering again", reply)
            return  # the next beat finds the same again
        epoch, look, missed, ended, granted, reclaimed = reply
        self._ledger.renewed(line, sent)
        line.epoch = epoch
        self._absorb_corrections(missed, ended)
        self._ledger.absorb(line.queue_id, granted, reclaimed)
        self._look_again(line, look)
