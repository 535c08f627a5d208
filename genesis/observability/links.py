"""Helpers for spans: links to other calls, errors, and trace context in text form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from genesis.backends.protocol import CallRef
from genesis.observability import names

__all__ = ["StartSpan", "complete", "context_of", "end", "fail", "ids_of", "traceparent"]

StartSpan: TypeAlias = Callable[..., Span]

# The spans that are created when they end: their kind, and the relation to the calls they link to.
_SHAPES: dict[str, tuple[SpanKind, names.Relation]] = {
    names.SPAN_WAIT: (SpanKind.INTERNAL, "released_by"),
    names.SPAN_RELEASE: (SpanKind.CLIENT, "granted_to"),
    names.SPAN_RECLAIM: (SpanKind.INTERNAL, "reclaimed_from"),
}


def complete(
    start: StartSpan,
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
    attributes |= _related(relation, parties)
    span = start(name, parent, kind, attributes, _links(relation, parties), began)
    end(span, failure, max(ended, began + 1))


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


def fail(span: Span, cause: BaseException | str) -> None:
    """Mark a span as failed, by an exception or by an outcome."""
    kind = _ERROR_TYPES.get(cause, cause) if isinstance(cause, str) else type(cause).__name__
    span.set_attribute(names.ERROR_TYPE, kind)
    span.set_status(Status(StatusCode.ERROR, str(cause)))


def end(span: Span, cause: BaseException | str | None, now: int | None = None) -> None:
    if cause is not None:
        fail(span, cause)
    span.end(now)


def _related(relation: names.Relation, parties: Sequence[CallRef]) -> dict[str, Any]:
    """The ids of the other calls as attributes. Usually there is one."""
    if not parties:
        return {}
    one = parties[0] if len(parties) == 1 else None
    return {
        names.RELATED_ITEM.format(relation): one.item_id if one else [p.item_id for p in parties],
        names.RELATED_INSTANCE.format(relation): (
            one.instance_id if one else [p.instance_id for p in parties]
        ),
    }


def _links(relation: names.Relation, parties: Sequence[CallRef]) -> list[Link]:
    """Links to the spans of the other calls, for those whose `traceparent` is known."""
    return [
        Link(
            context, {names.LINK: relation, names.ITEM_ID: p.item_id, names.INSTANCE_ID: p.instance_id}
        )
        for p in parties
        if (context := context_of(p.context)) is not None
    ]


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
