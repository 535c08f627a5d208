"""The current span while a slot is held, and its restoration afterwards."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Token
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span

from genesis.observability.span_context import ids_of

__all__ = ["CurrentHold", "Hold", "without_ended_holds"]


class Hold:
    """The context of a body, current from `begin_hold` until `leave_context`.

    A plain `Hold` leaves the caller's span current. `CurrentHold` is itself the current span. A context
    left behind must not contain an ended span, but not every such context can be restored. The slots of
    a task can be left in any order. An abandoned async generator is closed in another task, whose
    context is not the consumer's. `leave_context` therefore restores the context only if this hold is
    current in it; elsewhere, `CurrentHold` delegates to the outer span from then on.

    Args:
        span: the span of the hold, or in its place.
        outer: the context to restore.
    """

    _ended = False
    _context: Context | None = None
    _token: Any = None

    def __init__(self, span: Span, outer: Context) -> None:
        self._outer = outer
        self._span = span

    def ids(self) -> dict[str, str] | None:
        """The ids of the span, for log events; None if it has none."""
        return ids_of(self._span.get_span_context())

    def begin_hold(self) -> None:
        context = self._outer
        if type(self) is CurrentHold:
            context = trace.set_span_in_context(self, context)  # type: ignore[arg-type]
        self._context = context
        self._token = otel_context.attach(context)

    def leave_context(self) -> None:
        """Restore the outer context; no effect before `begin_hold`."""
        self._ended, context = True, self._context
        if context is None:
            return
        # The second test: the body might have attached a value (baggage) and not detached it.
        current = otel_context.get_current()
        if current is context or trace.get_current_span(current) is trace.get_current_span(context):
            outer = self._outer and without_ended_holds(self._outer)
            try:
                before = self._token.old_value
                if before is not outer and (outer or before is not Token.MISSING):
                    raise ValueError
                self._token.var.reset(self._token)  # at a third of the cost of attaching
            except (AttributeError, ValueError):
                otel_context.attach(outer)
            self._context = self._token = None  # break the reference cycle

    def _now(self) -> Span:
        return trace.get_current_span(self._outer) if self._ended else self._span

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now(), name)


def _passed_on(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **options: Any) -> Any:
        return getattr(self._now(), name)(*args, **options)

    return method


CurrentHold: Any = type(
    "CurrentHold",
    (Hold, Span),
    {name: _passed_on(name) for name in {*Span.__abstractmethods__, "add_link"}},
)


def without_ended_holds(context: Context) -> Context:
    """`context`, or its nearest outer context that does not belong to an ended hold."""
    while context:
        hold: Any = trace.get_current_span(context)
        if type(hold) is not CurrentHold or not hold._ended or hold._context is not context:
            break
        context = hold._outer
    return context
