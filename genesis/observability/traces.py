"""Spans with the OpenTelemetry API alone; without an SDK they cost next to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from genesis.backends.protocol import Party
from genesis.observability import names

__all__ = ["Tracing", "context_of", "traceparent"]


class Tracing:
    """Starts the spans of one backend's queues.

    Args:
        provider: None takes the process' provider.
        version: of this library.
    """

    def __init__(
        self,
        provider: trace.TracerProvider | None,
        version: str,
        backend: str,
        instance_id: str,
    ) -> None:
        self._tracer = trace.get_tracer("genesis", version, tracer_provider=provider)
        self._backend = backend
        self._instance_id = instance_id

    def start(
        self,
        name: str,
        queue_id: str,
        item_id: str,
        kind: SpanKind = SpanKind.INTERNAL,
        parent: Context | None = None,
        links: Sequence[Link] | None = None,
    ) -> Span:
        """Start `<name> <queue>` with the attributes that every span bears."""
        attributes = {
            names.ITEM_ID: item_id,
            names.QUEUE_ID: queue_id,
            names.INSTANCE_ID: self._instance_id,
            names.BACKEND: self._backend,
            names.MESSAGE_ID: item_id,
            names.DESTINATION: queue_id,
        }
        return self._tracer.start_span(
            f"{name} {queue_id}", parent, kind=kind, attributes=attributes, links=links
        )


def fail(span: Span, error: BaseException) -> None:
    """Mark a span as failed; a cancellation is not a failure, and is not marked."""
    span.set_attribute(names.ERROR_TYPE, type(error).__name__)
    span.set_status(Status(StatusCode.ERROR, str(error)))


def link_to(party: Party, relation: str) -> list[Link]:
    """A link to the span whose `traceparent` came through the backend; none if it is not readable."""
    context = context_of(party.context)
    if context is None:
        return []
    attributes: dict[str, Any] = {
        names.LINK: relation,
        names.ITEM_ID: party.item_id,
        names.INSTANCE_ID: party.instance_id,
    }
    return [Link(context, attributes)]


def traceparent(span: Span) -> str:
    """The span's context as W3C `traceparent`; empty if there is no trace.

    Written and read here, and not with the application's propagator: what travels with the ticket
    must be understood by every instance, whatever each has configured.
    """
    context = span.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def context_of(text: str) -> SpanContext | None:
    parts = text.split("-")
    if len(parts) != 4 or [len(part) for part in parts] != [2, 32, 16, 2]:
        return None
    try:
        trace_id, span_id, flags = int(parts[1], 16), int(parts[2], 16), int(parts[3], 16)
    except ValueError:
        return None
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    return context if context.is_valid else None
