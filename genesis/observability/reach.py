"""`genesis_backend_up`: whether the backends of this process can be reached."""

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
    """The backends of one kind: all that are known, and those that are unreachable.

    The references are weak: a backend abandoned without `close` no longer counts.
    """

    __slots__ = ("away", "met")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.met: WeakSet[object] = WeakSet()
        self.away: WeakSet[object] = WeakSet()

    @property
    def value(self) -> float | None:
        if not self.met:
            return None
        return 0.0 if self.away else 1.0


class BackendUp(Family):
    """1, or 0 while a backend of a kind in this process, or a part of one, is unreachable.

    There is no series before the first contact with a backend, or after all backends are closed. Only
    rare events change the value, so the path of a call never touches it.

    Args:
        publish: called with a kind and its value whenever the value might have changed.
    """

    text = "1 if the backend is reached, 0 if it or a part of it is not."

    def __init__(self, publish: Callable[[str, float | None], None] | None = None) -> None:
        super().__init__(GaugeMetricFamily, names.BACKEND_UP, self.text, ("backend",), _OfOneKind)
        self._publish = publish
        # One thread must not overwrite a newer value of another. The lock is reentrant, because the
        # garbage collector might finalize a backend in between.
        self._lock = threading.RLock()

    def reset(self) -> None:
        self._lock = threading.RLock()
        super().reset()

    def show(self, kind: str) -> None:
        """Publish the value of a kind, even if it is not known."""
        if self._publish is not None:
            with self._lock:
                self._publish(kind, self.labels(kind).value)

    def met(self, kind: str, backend: object) -> None:
        """The backend has replied. That ends no outage: another part of it might be unreachable."""
        self.labels(kind).met.add(backend)
        self.show(kind)

    def lost(self, kind: str, backend: object) -> None:
        """The backend, or a part of it, is unreachable."""
        self.labels(kind).away.add(backend)
        self.met(kind, backend)

    def found(self, kind: str, backend: object) -> None:
        """Every part of the backend can be reached again."""
        self.labels(kind).away.discard(backend)
        self.met(kind, backend)

    def closed(self, kind: str, backend: object) -> None:
        """The backend was closed."""
        self.labels(kind).away.discard(backend)
        self.labels(kind).met.discard(backend)
        self.show(kind)

    def _fill(self, family: Any, labels: tuple[str, ...], child: _OfOneKind) -> None:
        if (value := child.value) is not None:
            family.add_metric(labels, value)
