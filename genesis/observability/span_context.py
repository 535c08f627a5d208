"""What the spans of a call need: its trace context as text, links to other calls, and the current span
while its slot is held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from genesis.backends.protocol import CallRef
from genesis.observability import names

__all__ = [
    "CurrentHold",
    "complete",
    "context_of",
    "end",
    "ids_of",
    "traceparent",
    "without_ended_holds",
]

# The spans that are created when they end: their kind, and the relation to the calls they link to.
_SHAPES: dict[str, tuple[SpanKind, names.Relation]] = {
    names.SPAN_WAIT: (SpanKind.INTERNAL, "released_by"),
    names.SPAN_RELEASE: (SpanKind.CLIENT, "granted_to"),
    names.SPAN_RECLAIM: (SpanKind.INTERNAL, "reclaimed_from"),
}


def complete(
    start: Callable[..., Span],
    name: str,
    parent: Context,
    attributes: dict[str, Any],
    parties: Sequence[CallRef],
    began: int,
    ended: int,
    failure: BaseException | str | None,
) -> None:
    """Create a finished span with all its attributes; `began` and `ended` in ns."""
    kind, relation = _SHAPES[name]
    for attribute, ids in (
        (names.RELATED_ITEM, [party.item_id for party in parties]),
        (names.RELATED_INSTANCE, [party.instance_id for party in parties]),
    ):
        if ids:
            attributes[attribute.format(relation)] = ids[0] if len(ids) == 1 else ids
    links = [  # to the calls whose `traceparent` is known
        Link(
            context,
            {names.LINK: relation, names.ITEM_ID: of.item_id, names.INSTANCE_ID: of.instance_id},
        )
        for of in parties
        if (context := context_of(of.context)) is not None
    ]
    end(start(name, parent, kind, attributes, links, began), failure, ended)


def ids_of(context: SpanContext) -> dict[str, str] | None:
    if not context.is_valid:
        return None
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def traceparent(context: SpanContext) -> str:
    """W3C `traceparent`. It does not use the application's propagator: every instance must understand
    the context of a ticket, whatever each has configured."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


# `error.type` of a failure without an exception.
_ERROR_TYPES = {
    "timeout": "QueueTimeoutError",
    "evicted": "EvictedError",
    "lost": "SlotLostError",
}


def end(span: Span, failure: BaseException | str | None, now: int | None = None) -> None:
    """End a span, as failed if there is an exception or an outcome that is a failure."""
    if failure is not None:
        kind = (
            _ERROR_TYPES.get(failure, failure) if isinstance(failure, str) else type(failure).__name__
        )
        span.set_attribute(names.ERROR_TYPE, kind)
        span.set_status(Status(StatusCode.ERROR, str(failure)))
    span.end(now)


def context_of(text: str) -> SpanContext | None:
    """Parse a `traceparent`; None if it is not valid.

    OpenTelemetry's propagator takes three times as long, and a hand-off parses two of them.
    """
    parts = text.split("-")
    if [len(part) for part in parts] != [2, 32, 16, 2]:
        return None
    try:
        trace_id, span_id, flags = (int(part, 16) for part in parts[1:])
    except ValueError:
        return None
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    return context if context.is_valid else None


class _Hold:
    """The span of a hold, made current on creation. After its end it delegates to the outer span.

    A context left behind must not contain an ended span, but not every such context can be restored.
    The slots of a task can be left in any order. An abandoned async generator is closed in another
    task, whose context is not the consumer's. `leave` therefore restores the context only if this hold
    is current in it; elsewhere, the delegation hides the ended span.
    """

    def __init__(self, span: Span, outer: Context) -> None:
        self._outer = outer
        self._span: Span | None = span  # None once it has ended
        self._context: Context | None = trace.set_span_in_context(self, outer)  # type: ignore[arg-type]
        self._token: Any = otel_context.attach(self._context)

    def leave(self) -> None:
        self._span = None
        current: Any = trace.get_current_span()
        # Not "is self._context": the body might have attached a value (baggage) and not detached it.
        if current is self:
            outer = self._outer and without_ended_holds(self._outer)
            try:
                if outer is not self._outer or self._token.old_value is not outer:
                    raise ValueError
                self._token.var.reset(self._token)  # at a third of the cost of attaching
            except (AttributeError, ValueError):
                otel_context.attach(outer)
            self._context = self._token = None  # break the reference cycle

    def _now(self) -> Span:
        span = self._span
        return trace.get_current_span(self._outer) if span is None else span

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now(), name)


def _passed_on(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **options: Any) -> Any:
        return getattr(self._now(), name)(*args, **options)

    return method


CurrentHold: Any = type(
    "CurrentHold",
    (_Hold, Span),
    {name: _passed_on(name) for name in {*Span.__abstractmethods__, "add_link"}},
)


def without_ended_holds(context: Context) -> Context:
    """`context`, or its nearest outer context that does not belong to an ended hold."""
    while context:
        hold: Any = trace.get_current_span(context)
        if type(hold) is not CurrentHold or hold._span is not None or hold._context is not context:
            break
        context = hold._outer
    return context
