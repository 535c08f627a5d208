"""The current span while a slot is held, and its restoration afterwards."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Token
from types import SimpleNamespace
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span

from genesis.observability.span_context import ids_of


def current_variable() -> Any:
    """OpenTelemetry's variable with the current context.

    OpenTelemetry's own functions cost several times as much as `get` and `set` of the variable, and
    every call reads or sets the context three times.
    """
    token: Any = otel_context.attach(otel_context.get_current())
    otel_context.detach(token)
    if isinstance(token, Token) and token.var.get() is otel_context.get_current():
        return token.var
    # A runtime context other than OpenTelemetry's own, selected by OTEL_PYTHON_CONTEXT.
    return SimpleNamespace(get=otel_context.get_current, set=otel_context.attach)


class Hold:
    """The context of a body, current from `begin_hold` until `leave_context`.

    A context left behind must not contain an ended span, but not every such context can be restored.
    The slots of a task can be left in any order. An abandoned async generator is closed in another
    task, whose context is not the consumer's. `leave_context` therefore restores the context only if
    this hold is current in it; elsewhere, `CurrentHold` delegates to the outer span from then on.

    Args:
        span: the span of the hold, or in its place.
        current: the variable, see `current_variable`.
        shown: the span that becomes current: `span`, or the one around the body.
    """

    __slots__ = ("_context", "_current", "ended", "outer", "shown", "span")

    def __init__(self, span: Span, current: Any, shown: Span) -> None:
        self.span = span
        self.outer: Context  # to restore; set by `begin_hold`
        self._current = current
        self.ended = False
        self.shown = shown
        self._context: Context | None = None

    def ids(self) -> dict[str, str] | None:
        """The ids of the span, for log events; None if it has none."""
        return ids_of(self.span.get_span_context())

    def begin_hold(self) -> None:
        now = self._current.get()
        self.outer = now and without_ended_holds(now)
        span = CurrentHold.__new__(CurrentHold)
        span.hold = self
        self._context = context = trace.set_span_in_context(span, self.outer)
        self._current.set(context)

    def leave_context(self) -> None:
        """Restore the outer context; no effect before `begin_hold`."""
        self.ended, context = True, self._context
        if context is None:
            return
        self.outer = self.outer and without_ended_holds(self.outer)
        now = self._current.get()
        # The second test: the body might have attached a value (baggage) and not detached it.
        if now is context or trace.get_current_span(now) is trace.get_current_span(context):
            self._current.set(self.outer)
            self._context = None  # break the reference cycle


class _Delegate:
    hold: Hold

    def _now(self) -> Span:
        hold = self.hold
        if not hold.ended:
            return hold.shown
        hold.outer = without_ended_holds(hold.outer)  # a chain of ended holds must not grow
        return trace.get_current_span(hold.outer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now(), name)


def _passed_on(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **options: Any) -> Any:
        return getattr(self._now(), name)(*args, **options)

    return method


CurrentHold: Any = type(
    "CurrentHold",
    (_Delegate, Span),
    {name: _passed_on(name) for name in {*Span.__abstractmethods__, "add_link"}},
)


def without_holds(context: Context) -> Context:
    """`context` with the span of a hold itself: it stays the parent when the hold has ended."""
    context = without_ended_holds(context)
    span: Any = trace.get_current_span(context)
    return trace.set_span_in_context(span.hold.shown, context) if type(span) is CurrentHold else context


def without_ended_holds(context: Context) -> Context:
    """`context`, or the nearest outer one. The span around an ended hold takes its place."""
    while context:
        span: Any = trace.get_current_span(context)
        if type(span) is not CurrentHold or not span.hold.ended:
            break
        hold = span.hold
        if hold._context is context:
            context = hold.outer
        else:  # another value was attached since: keep it
            context = trace.set_span_in_context(trace.get_current_span(hold.outer), context)
    return context
