"""The current span while a slot is held, and its restoration afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span

__all__ = ["CurrentHold", "without_ended_holds"]


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
