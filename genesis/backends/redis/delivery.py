"""Delivery of a core's verdicts: they resolve the futures of calls and become backend events."""

# ruff: noqa: ARG001 - all functions of the table share one signature

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from genesis.backends import protocol
from genesis.backends.estimate import FEWEST_HOLDS, expected_wait
from genesis.backends.protocol import Disrupted, EnterResult, Grant, SlotLost
from genesis.backends.redis import verdicts
from genesis.backends.redis.calls import Call, LocalQueue
from genesis.backends.redis.ticket import Stage

if TYPE_CHECKING:
    from genesis.backends.redis.driver import Driver

__all__ = ["deliver"]


def deliver(driver: Driver, queue: LocalQueue, verdict: verdicts.Verdict) -> None:
    _DELIVER[type(verdict)](driver, queue, verdict)


def _granted(driver: Driver, queue: LocalQueue, verdict: verdicts.Granted) -> None:
    call: Call = verdict.ticket.handle
    call.is_granted(Grant(verdict.ticket.number, verdict.released_by))


def _waiting(driver: Driver, queue: LocalQueue, verdict: verdicts.Waiting) -> None:
    call: Call = verdict.ticket.handle
    number = verdict.ticket.number
    position = max(1, verdict.position)
    depth = max(1, verdict.depth)
    resumed = verdict.ticket.resumed
    call.is_waiting(
        EnterResult(call.ticket, None, position, depth, None, None, number, resumed, verdict.holders)
    )


def _refused(driver: Driver, queue: LocalQueue, verdict: verdicts.Refused) -> None:
    call: Call = verdict.ticket.handle
    mean = verdict.mean_hold if verdict.holds >= FEWEST_HOLDS else None
    retry_after = expected_wait(verdict.depth + 1, verdict.limit, mean)
    if not call.answer.done():
        result = EnterResult(call.ticket, None, 0, verdict.depth, verdict.reason, retry_after)
        call.answer.set_result(result)


def _failed(driver: Driver, queue: LocalQueue, verdict: verdicts.Failed) -> None:
    call: Call = verdict.ticket.handle
    error = f"{driver.redact(verdict.error)}"
    call.fail(driver.unavailable("enter", error, queue.queue_id, call.ticket.item_id))


def _evicted(driver: Driver, queue: LocalQueue, verdict: verdicts.Evicted) -> None:
    verdict.ticket.handle.is_evicted()


def _out_of_reach(driver: Driver, queue: LocalQueue, verdict: verdicts.OutOfReach) -> None:
    _lost_place(driver, queue, verdict.ticket.handle, driver.why_down(queue))


def _lost_place(driver: Driver, queue: LocalQueue, call: Call, cause: str) -> None:
    why = (
        f"it has renewed nothing for longer than the lease of {driver.lease:g} s ({cause}), "
        "so the place in line is lost"
    )
    call.fail(driver.unavailable("wait", why, queue.queue_id, call.ticket.item_id))


def _lost(driver: Driver, queue: LocalQueue, verdict: verdicts.Lost) -> None:
    call: Call = verdict.ticket.handle
    if not call.lost:
        call.lost = True
        driver.emit(SlotLost(call.ticket, verdict.reason))


def _left_line(driver: Driver, queue: LocalQueue, verdict: verdicts.Left) -> None:
    call: Call = verdict.ticket.handle
    call.left = verdict.result
    if call.observed:
        driver.emit(protocol.Left(call.ticket, verdict.result, verdict.confirmed))
    driver.forget(call)


def _reclaimed(driver: Driver, queue: LocalQueue, verdict: verdicts.Reclaimed) -> None:
    item_id, instance_id, context = verdict.call
    event = protocol.Reclaimed(queue.queue_id, item_id, instance_id, verdict.state, context)
    driver.emit(event)


def _disagreement(driver: Driver, queue: LocalQueue, verdict: verdicts.Disagreement) -> None:
    driver.index.disagreed(queue.queue_id, verdict.previous, verdict.current)
    driver.emit(protocol.LimitDisagreement(queue.queue_id, verdict.previous, verdict.current))


def _beaten(driver: Driver, queue: LocalQueue, verdict: verdicts.Beaten) -> None:
    driver.emit(protocol.Heartbeat(verdict.seconds, "error" if verdict.stats is None else "ok"))
    if verdict.stats is not None:
        driver.emit(protocol.Snapshot(queue.queue_id, verdict.stats))


def _data_lost(driver: Driver, queue: LocalQueue, verdict: verdicts.DataLost) -> None:
    detail = f"queue {queue.queue_id!r} registers {verdict.tickets} tickets again"
    driver.emit(Disrupted("data_lost", detail, lasts=False))


def _rejected(driver: Driver, queue: LocalQueue, verdict: verdicts.Rejected) -> None:
    now = driver.loop.time()
    if queue.rejected_since is None:
        queue.rejected_since = now
    detail = f"queue {queue.queue_id!r}: {verdict.command}: {driver.redact(verdict.error)}"
    driver.is_down(f"queue {queue.queue_id}", "refused", detail)
    if now - queue.rejected_since >= driver.lease:  # connected, but not renewed: places are lost
        for ticket in queue.core.tickets.values():
            if ticket.stage is Stage.WAITING and ticket.wanted:
                _lost_place(driver, queue, ticket.handle, detail)


_DELIVER: dict[type, Callable[[Driver, LocalQueue, Any], None]] = {
    verdicts.Granted: _granted,
    verdicts.Waiting: _waiting,
    verdicts.Refused: _refused,
    verdicts.Failed: _failed,
    verdicts.Evicted: _evicted,
    verdicts.OutOfReach: _out_of_reach,
    verdicts.Lost: _lost,
    verdicts.Left: _left_line,
    verdicts.Reclaimed: _reclaimed,
    verdicts.Disagreement: _disagreement,
    verdicts.Beaten: _beaten,
    verdicts.DataLost: _data_lost,
    verdicts.Rejected: _rejected,
}
