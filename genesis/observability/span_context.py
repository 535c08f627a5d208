"""What the spans of a call need: trace context as text, links to other calls, and errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from genesis.backends.protocol import CallRef
from genesis.observability import names

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
    """Create a finished span with all its attributes; `began` and `ended` in ns.

    It lasts at least 1 ns: Jaeger warns of an empty span as of a negative duration.
    """
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
    end(start(name, parent, kind, attributes, links, began), failure, max(ended, began + 1))


def ids_of(context: SpanContext | None) -> dict[str, str] | None:
    if context is None or not context.is_valid:
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
        try:
            text = str(failure)
        except Exception:  # raised by the application's exception
            text = kind
        span.set_status(Status(StatusCode.ERROR, text))
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
