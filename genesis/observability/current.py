"""Which span is current while a slot is held, and afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span

__all__ = ["CurrentHold", "without_ended_holds"]

_HOLD_KEY = otel_context.create_key("genesis-hold")


class CurrentHold:
    """What makes a span current while a slot is held, and what was current before so again.

    A context that is left behind must not name a span that has ended: slots of a task may be left in
    any order, and an async generator that is broken off is closed in another task, whose context is not
    the consumer's. So leaving changes the context only where it is this hold's own; and where it is
    not, the span in it stands for the one outside from then on.
    """

    __slots__ = ("context", "outer", "span")

    def __init__(self, span: Span) -> None:
        self.outer = without_ended_holds(otel_context.get_current())
        self.span: Span | None = span  # None once it has ended
        context = trace.set_span_in_context(_CurrentSpan(self), self.outer)
        self.context = otel_context.set_value(_HOLD_KEY, self, context)
        otel_context.attach(self.context)

    def leave(self) -> None:
        self.span = None
        if otel_context.get_current() is self.context:
            otel_context.attach(without_ended_holds(self.outer))


def without_ended_holds(context: Context) -> Context:
    while (hold := context.get(_HOLD_KEY)) is not None:
        if not isinstance(hold, CurrentHold) or hold.span is not None or hold.context is not context:
            break
        context = hold.outer
    return context


def _passed_on(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **options: Any) -> Any:
        return getattr(self._now(), name)(*args, **options)

    return method


class _CurrentSpanMethods:
    """The span of a hold; once that has ended, the one around it."""

    def __init__(self, hold: CurrentHold) -> None:
        self._hold = hold

    def _now(self) -> Span:
        span = self._hold.span
        return trace.get_current_span(self._hold.outer) if span is None else span

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now(), name)


_CurrentSpan: Any = type(
    "_CurrentSpan",
    (_CurrentSpanMethods, Span),
    {name: _passed_on(name) for name in {*Span.__abstractmethods__, "add_link"}},
)
