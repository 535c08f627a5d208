"""The observing layer: a `QueueBackend` that wraps any other and observes every operation.

It is complete by construction. mypy fails if an operation of the protocol is missing or differs, and
`_check_complete` fails at import if one is inherited instead of wrapped. It is transparent: the caller
gets what the inner backend returns or raises, and errors of a sink are only counted.
"""

from __future__ import annotations

import _thread
import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from functools import partial
from typing import Any, TypeVar, get_args

from opentelemetry.trace import NoOpTracerProvider

from genesis.backends import protocol
from genesis.backends.protocol import EnterRequest, EnterResult, Grant, LeaveResult, Snapshot, Ticket
from genesis.exceptions import BackendUnavailableError
from genesis.observability import names
from genesis.observability.histogram import MAX_UNFLUSHED, appender
from genesis.observability.logs import DEBUG, ERROR, INFO, WARNING
from genesis.observability.recorder import CallRecorder, wait_outcome
from genesis.observability.span_context import context_of, end, ids_of
from genesis.observability.spans import Tracing
from genesis.observability.telemetry import Telemetry

T = TypeVar("T")

_NOT_OPERATIONS = {"listen", "lapsed"}  # they send nothing, so there is nothing to measure
_WITHOUT_REPLY = {"leave", "flush", "close"}  # they can succeed without any reply


class ObservedBackend:
    """Observes any backend.

    Args:
        inner: performs the operations.
        telemetry: the sinks.
        version: the version of this library, for the build info and the tracer.
    """

    def __init__(self, inner: protocol.QueueBackend, telemetry: Telemetry, version: str) -> None:
        self._leaving: dict[str, tuple[CallRecorder | None, float]] = {}  # until their `Left`
        self._inner = inner
        self._telemetry = telemetry
        self._clock = telemetry.clock
        self.name = inner.name
        self.heartbeat_interval = inner.heartbeat_interval
        self.store = inner.store
        self._recorders: dict[str, CallRecorder] = {}  # by ticket; from `enter` until `leave`
        self._operations: dict[tuple[str, str], Any] = {}  # children, by operation and outcome
        # Observe successful steps without looking up a child; see `_succeeded`, which sorts
        # the noted values. A grant at once is not counted there: a `leave` follows soon.
        self._observe_ok: dict[str, Callable[[float], None]] = {
            step: partial(self._count_operation, step, "ok") for step in ("enter", "wait", "leave")
        }
        self._unflushed = 0  # steps since the values were sorted
        self._listener: protocol.Listener | None = None
        tracing = telemetry.guarded("traces", Tracing, telemetry.tracer_provider, version, inner)
        self._tracing = tracing or Tracing(NoOpTracerProvider(), version, inner)
        telemetry.guarded("metrics", self._expose, version)
        inner.listen(self._on_event)

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if self._leaving and not is_finalizing():  # by then, the SDK was shut down
            # Not in this thread: the garbage collector might have interrupted it inside a sink's lock.
            _thread.start_new_thread(self._never_left, ())

    def _never_left(self) -> None:
        for ticket_id in list(self._leaving):  # the loop has ended, and no `Left` can follow
            self._left(protocol.Left(Ticket("", "", ticket_id), LeaveResult(None), confirmed=False))

    def _expose(self, version: str) -> None:
        instruments = self._telemetry.instruments
        instruments.build_info.labels(version, self.name).set(1)
        for reason in get_args(names.DisruptionReason):
            instruments.disruptions.labels(self.name, reason)  # at 0, see metrics
        instruments.up.show(self.name)  # a dead process with the same pid might have left a value
        if not instruments.in_files:  # at 0, too
            instruments.operation.labels(self.name, "enter", "unavailable")

    @property
    def instance_id(self) -> str:
        return self._inner.instance_id

    def listen(self, listener: protocol.Listener) -> None:
        self._listener = listener

    # These three methods wrap the inner coroutine in no further one, which every resumption would pass
    # through, and read the clock once between two steps.

    async def enter(self, entry: EnterRequest) -> EnterResult:
        recorder = CallRecorder(self._telemetry, self._tracing, entry)
        if recorder.spans is not None:
            entry = entry._replace(context=recorder.context())
        try:
            result = await self._inner.enter(entry)
        except BaseException as error:
            seconds = self._clock() - recorder.began
            self._count_operation("enter", _operation_outcome(error), seconds)
            outcome = wait_outcome(error)
            # A timeout here is the backend's, not the caller's: the wait has not begun.
            recorder.not_granted("error" if outcome == "timeout" else outcome, error)
            raise
        now = self._clock()
        if result.grant is None:
            self._succeeded("enter", now - recorder.began)
        result = recorder.entered(result, now, self._observe_ok["enter"])
        if recorder.holding or recorder.waiting:  # not refused
            self._recorders[result.ticket.id] = recorder
        return result

    async def wait(self, ticket: Ticket, timeout: float | None) -> Grant:
        recorder = self._recorders.get(ticket.id)
        began = self._clock()
        try:
            grant = await self._inner.wait(ticket, timeout)
        except BaseException as error:
            self._count_operation("wait", _operation_outcome(error), self._clock() - began)
            if recorder is not None:
                recorder.not_granted(wait_outcome(error), error)
            raise
        now = self._clock()
        self._succeeded("wait", now - began)
        return grant if recorder is None else recorder.granted(grant, now, now - recorder.began)

    def leave(
        self,
        ticket: Ticket,
        context: str = "",
        keep_place: float = 0.0,
        error: BaseException | None = None,
    ) -> LeaveResult | None:
        """As the protocol's `leave`; `error` is the exception of the body, if any.

        The inner backend comes first, so that the next waiter does not wait for telemetry. The outcome
        of the hold is already decided: the recorder was removed, so a later `SlotLost` has no effect.
        """
        recorder = self._recorders.pop(ticket.id, None)
        began = self._clock()
        if recorder is not None and recorder.spans is not None:
            context = context or recorder.context()
        try:
            result = self._inner.leave(ticket, context, keep_place)
        except BaseException as raised:
            self._count_operation("leave", _operation_outcome(raised), self._clock() - began)
            if recorder is not None:
                recorder.left(error, began)
                recorder.released((), raised)
            raise
        seconds = self._clock() - began
        if recorder is not None:
            recorder.left(error, began)
        if result is None:
            self._leaving[ticket.id] = (recorder, began)
            return None
        try:  # inlined instead of `_succeeded`, because every call runs this
            self._observe_ok["leave"](seconds)
            self._unflushed += 1
        except Exception:
            self._telemetry.failed("metrics")
        if self._unflushed >= MAX_UNFLUSHED:
            self._flush()
        if recorder is not None and recorder.spans is not None:
            recorder.released(result.granted_to, None)
        return result

    def _left(self, event: protocol.Left) -> None:
        """The reply to a `leave` has come, or will never come."""
        recorder, began = self._leaving.pop(event.ticket.id, (None, None))
        if began is None:
            return  # that `leave` was not called through this object
        if event.confirmed:
            self._succeeded("leave", self._clock() - began)
        else:
            self._count_operation("leave", "unconfirmed", self._clock() - began)
        if recorder is not None:
            recorder.released(event.result.granted_to, None, confirmed=event.confirmed)

    def refused(self, entry: EnterRequest, reason: names.RefusalReason) -> None:
        """A call was refused before it reached the backend, because the Queue is draining."""
        CallRecorder(self._telemetry, self._tracing, entry).refused(reason)

    def lapsed(self, ticket: Ticket) -> bool:
        lapsed = self._inner.lapsed(ticket)
        if lapsed and (recorder := self._recorders.get(ticket.id)) is not None:
            recorder.slot_lost("lapsed")  # report the loss even if the backend emits no event
        return lapsed

    async def set_limit(self, queue_id: str, limit: int | None) -> None:
        await self._inspect("set_limit", queue_id, "", self._inner.set_limit(queue_id, limit))
        self._log(INFO, "limit_changed", queue_id=queue_id, limit=limit)

    async def stats(self, queue_id: str) -> protocol.QueueStats:
        return await self._inspect("stats", queue_id, "", self._inner.stats(queue_id))

    async def wait_status(
        self, queue_id: str, wanted: Sequence[Ticket | str]
    ) -> list[protocol.WaitStatus | None]:
        call = self._inner.wait_status(queue_id, wanted)
        return await self._inspect("wait_status", queue_id, "", call)

    async def entries(self, queue_id: str) -> list[protocol.QueueEntry]:
        return await self._inspect("entries", queue_id, "", self._inner.entries(queue_id))

    async def evict(self, queue_id: str, item_id: str) -> int:
        count = await self._inspect("evict", queue_id, item_id, self._inner.evict(queue_id, item_id))
        if count:
            self._log(INFO, "evicted", queue_id=queue_id, item_id=item_id, tickets=count)
        return count

    async def ping(self) -> None:
        await self._inspect("ping", "", "", self._inner.ping())

    async def flush(self) -> None:
        await self._inspect("flush", "", "", self._inner.flush())

    async def close(self) -> None:
        try:
            await self._inspect("close", "", "", self._inner.close())
        finally:
            self._telemetry.guarded("metrics", self._reached, None)
        self._log(DEBUG, "closed")

    def _reached(self, reached: bool | None) -> None:
        self._telemetry.instruments.up.set(self, reached)

    async def _inspect(
        self, operation: names.Operation, queue_id: str, item_id: str, call: Awaitable[T]
    ) -> T:
        """Observe an operation that is no step of a call: one CLIENT span and one log event."""
        span = self._telemetry.guarded("traces", self._tracing.inspection, operation, queue_id, item_id)
        failure: BaseException | None = None
        began = self._clock()
        try:
            return await call
        except BaseException as error:
            failure = error
            raise
        finally:
            outcome = "ok" if failure is None else _operation_outcome(failure)
            self._count_operation(operation, outcome, self._clock() - began)
            if span is not None:
                cause = None if isinstance(failure, asyncio.CancelledError) else failure
                self._telemetry.guarded("traces", end, span, cause)
            self._log(DEBUG, "inspected", operation=operation, queue_id=queue_id, outcome=outcome)

    def _succeeded(self, step: str, seconds: float) -> None:
        try:
            self._observe_ok[step](seconds)
            self._unflushed += 1
        except Exception:
            self._telemetry.failed("metrics")
        if self._unflushed >= MAX_UNFLUSHED:
            self._flush()

    def _flush(self) -> None:
        self._unflushed = 0
        self._telemetry.guarded("metrics", lambda: self._telemetry.instruments.flush())

    def _count_operation(self, operation: str, outcome: str, seconds: float) -> None:
        self._telemetry.guarded("metrics", self._observe, operation, outcome, seconds)

    def _observe(self, operation: str, outcome: str, seconds: float) -> None:
        key = (operation, outcome)
        child = self._operations.get(key)
        if child is None:
            instruments = self._telemetry.instruments
            child = instruments.operation.labels(self.name, operation, outcome)
            self._operations[key] = child
            if outcome == "ok" and operation not in _WITHOUT_REPLY:
                self._telemetry.guarded("metrics", instruments.up.met, self)
            if outcome == "ok" and operation in self._observe_ok:
                self._observe_ok[operation] = appender(child)
        child.observe(seconds)

    def _on_event(self, event: protocol.BackendEvent) -> None:
        # An empty context: the backend emits events from tasks and timers that run in the context of
        # some call, and a log event would contain that call's trace and variables.
        if isinstance(event, Snapshot):
            self._telemetry.guarded("metrics", self._show, event)
        else:
            Context().run(self._telemetry.guarded, "metrics", self._record, event)
        if self._listener is not None:
            self._listener(event)

    def _record(self, event: protocol.BackendEvent) -> None:
        telemetry = self._telemetry
        if isinstance(event, protocol.Left):
            self._left(event)
        elif isinstance(event, protocol.SlotLost):
            recorder = self._recorders.get(event.ticket.id)
            if recorder is not None:
                recorder.slot_lost(event.reason)
        elif isinstance(event, protocol.Heartbeat):
            self._count_operation(names.HEARTBEAT, event.outcome, event.seconds)
        elif isinstance(event, protocol.Reclaimed):
            fields = event._asdict()
            ids = ids_of(context_of(fields.pop("context"))) or {}
            self._log(WARNING, "reclaimed", **fields, **ids)
            telemetry.guarded("traces", self._tracing.reclaimed, event)
            label = telemetry.series(event.queue_id).label
            telemetry.instruments.reclaimed.labels(label, event.state).inc()
        elif isinstance(event, protocol.LimitDisagreement):
            self._log(WARNING, "limit_changed", **event._asdict())
            label = telemetry.series(event.queue_id).label
            telemetry.instruments.disagreements.labels(label).inc()
        elif isinstance(event, protocol.OverrideChanged):
            self._log(INFO, "limit_changed", **event._asdict())
        elif isinstance(event, protocol.Disrupted):
            self._log(ERROR, "backend_unavailable", reason=event.reason, detail=event.detail)
            telemetry.instruments.disruptions.labels(self.name, event.reason).inc()
            if event.lasts:
                self._reached(False)
        elif isinstance(event, protocol.Recovered):
            self._log(INFO, "backend_recovered", outage=event.outage)
            self._reached(True)

    def _show(self, snapshot: Snapshot) -> None:
        queue_id, stats = snapshot
        label, shared = self._telemetry.series(queue_id).label, self._telemetry.instruments.shared
        shared.report(queue_id, self.name, label, stats, self.heartbeat_interval, self.store)

    def _log(self, level: int, event: names.LogEvent, **fields: Any) -> None:
        about = {"backend": self.name, "instance_id": self._inner.instance_id}
        self._telemetry.event(level, event, {**about, **fields})


def _operation_outcome(error: BaseException) -> names.OperationOutcome:
    return "unavailable" if isinstance(error, BackendUnavailableError) else wait_outcome(error)


def _check_complete() -> None:
    methods = {
        name
        for name, member in vars(protocol.QueueBackend).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }
    if missing := methods - {n for n, member in vars(ObservedBackend).items() if callable(member)}:
        raise TypeError(f"the observing layer does not wrap: {', '.join(sorted(missing))}")
    if unnamed := (methods - _NOT_OPERATIONS) ^ set(get_args(names.Operation)):
        raise TypeError(f"names.Operation and the protocol differ in: {', '.join(sorted(unnamed))}")


_check_complete()
_complete: type[protocol.QueueBackend] = ObservedBackend
