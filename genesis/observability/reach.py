"""`genesis_backend_up`: whether the backends of this process are reached."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from prometheus_client.core import GaugeMetricFamily

from genesis.observability import names
from genesis.observability.histogram import Family

__all__ = ["BackendUp"]


class _OfOneKind:
    """The backends of one kind: those that were heard of, and of these the ones out of reach.

    One that the application has forgotten without closing it counts no more.
    """

    __slots__ = ("away", "met")

    def __init__(self) -> None:
        self.begin_again()

    def begin_again(self) -> None:
        self.met: WeakSet[object] = WeakSet()
        self.away: WeakSet[object] = WeakSet()

    @property
    def value(self) -> float | None:
        if not self.met:
            return None
        return 0.0 if self.away else 1.0


class BackendUp(Family):
    """1, or 0 while a backend of that kind in this process, or a part of one, is out of reach.

    There is no series before anything is known of a backend, nor once all are closed. Only what
    happens rarely changes it, so the path of a call does not know of it.

    Args:
        publish: is called with a kind and its value whenever that may have changed.
    """

    text = "1 if the backend is reached, 0 if it or a part of it is not."

    def __init__(self, publish: Callable[[str, float | None], None] | None = None) -> None:
        super().__init__(GaugeMetricFamily, names.BACKEND_UP, self.text, ("backend",), _OfOneKind)
        self._publish = publish
        # One thread's loop must not overwrite what another has just published. Reentrant, because the
        # collector may forget a backend in the middle.
        self._lock = threading.RLock()

    def begin_again(self) -> None:
        self._lock = threading.RLock()
        super().begin_again()

    def show(self, kind: str) -> None:
        """Publish the value of a kind, known or not."""
        if self._publish is not None:
            with self._lock:
                self._publish(kind, self.labels(kind).value)

    def met(self, kind: str, backend: object) -> None:
        """It has answered. That does not end an outage: another part of it may be away."""
        self.labels(kind).met.add(backend)
        self.show(kind)

    def lost(self, kind: str, backend: object) -> None:
        """It, or a part of it, is out of reach."""
        self.labels(kind).away.add(backend)
        self.met(kind, backend)

    def found(self, kind: str, backend: object) -> None:
        """All of it is reached again."""
        self.labels(kind).away.discard(backend)
        self.met(kind, backend)

    def closed(self, kind: str, backend: object) -> None:
        """It reaches for nothing any more."""
        self.labels(kind).away.discard(backend)
        self.labels(kind).met.discard(backend)
        self.show(kind)

    def _fill(self, family: Any, labels: tuple[str, ...], child: _OfOneKind) -> None:
        if (value := child.value) is not None:
            family.add_metric(labels, value)
