"""prometheus_client's multiprocess mode: several workers behind one port keep their values in files.

prometheus_client reads PROMETHEUS_MULTIPROC_DIR once, when it is imported. A scrape of one worker
returns the metrics of all workers.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import values
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from genesis.observability import names
from genesis.observability.logs import own_logger
from genesis.observability.reach import BackendUp
from genesis.observability.shared import SHARED, Values

__all__ = ["AllProcesses", "SharedFiles", "directory", "warn_of_other_workers"]

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_MODE = "livemax"
_NEVER = 1.0  # the expiry of an unknown value: it has always expired
_LIVE_FILE = re.compile(r"gauge_live[a-z]+_(\d+)\.db")

_logged: set[str] = set()


def directory() -> str | None:
    """The directory of the processes' files; None if multiprocess mode is off.

    If the variable is set but cannot be used, an error is logged once.
    """
    path = os.environ.get(VARIABLE) or os.environ.get(VARIABLE.lower())
    if not path:
        return None
    if not values.ValueClass._multiprocess:
        _log_once(
            f"{VARIABLE} was set after prometheus_client had been imported, and is not used then: "
            "/metrics shows this process alone. Set it before the program starts."
        )
        return None
    os.environ.setdefault(VARIABLE, path)  # prometheus_client does so too, with a warning
    if not Path(path).is_dir() or not os.access(path, os.W_OK | os.X_OK):
        _log_once(
            f"{VARIABLE} is {path!r}, which is no directory that this process can write to: /metrics "
            "shows this process alone. Create the directory before the server starts."
        )
        return None
    return path


def warn_of_other_workers() -> None:
    """Log an error if this looks like one of several workers and multiprocess mode is off."""
    is_worker = multiprocessing.parent_process() is not None or os.environ.get(
        "SERVER_SOFTWARE", ""
    ).startswith("gunicorn")
    if is_worker and directory() is None:
        _log_once(
            "this process looks like one of several workers of a server. A scrape reads the metrics of "
            f"whichever worker answers it. Set {VARIABLE} to an empty directory before the server "
            "starts, so that each worker answers with the metrics of all.",
        )


def _log_once(text: str) -> None:
    if text not in _logged:
        _logged.add(text)
        own_logger().error(text)


class SharedFiles:
    """Writes gauges to this process's file, together with their expiry.

    A value written before a fork is 0 in the child's file, and has expired there.

    Args:
        gauges: the shared ones, in the order of `SHARED`.
        up: whether the backends are reached.
    """

    mode: Any = _MODE

    def __init__(self, gauges: list[Any], up: Any) -> None:
        self._gauges = gauges
        self._up = up

    def publish(self, label: str, backend: str, shown: Values, seconds: float) -> None:
        until = time.time() + seconds
        for gauge, value in zip(self._gauges, shown, strict=True):
            _write(gauge.labels(label, backend), value, until)

    def publish_up(self, backend: str, value: float | None) -> None:
        _write(self._up.labels(backend), value, math.inf)


def _write(child: Any, value: float | None, until: float) -> None:
    if value is None:
        child._value.set(0.0, timestamp=_NEVER)
    else:
        child._value.set(float(value), timestamp=until)


class AllProcesses(MultiProcessCollector):
    """The metrics of all processes, without the gauges of dead processes.

    uvicorn has no hook for a dead worker, and a killed process runs no hook. Each scrape therefore
    checks which processes are alive.
    """

    def collect(self) -> Iterator[Any]:
        self._remove_dead()
        ours = {names.BACKEND_UP, *(name for name, _ in SHARED)}
        for metric in super().collect():  # type: ignore[no-untyped-call]
            if metric.name not in ours:
                yield metric
        yield from self._unexpired()

    def _remove_dead(self) -> None:
        files = [file.name for file in Path(self._path).iterdir()]
        for pid in {match[1] for match in map(_LIVE_FILE.fullmatch, files) if match}:
            if not _is_alive(int(pid)):
                try:
                    mark_process_dead(int(pid), self._path)  # type: ignore[no-untyped-call]
                except FileNotFoundError:
                    continue  # another worker's scrape was faster

    def _unexpired(self) -> Iterator[Any]:
        """Over all processes, of each gauge's unexpired values: the maximum; the minimum of `up`."""
        now = time.time()
        greatest: dict[tuple[str, str, str], float] = {}
        least: dict[str, float] = {}
        for file in Path(self._path).glob(f"gauge_{_MODE}_*.db"):
            try:
                entries = list(MmapedDict.read_all_values_from_file(str(file)))  # type: ignore[no-untyped-call]
            except FileNotFoundError:
                continue
            for key, value, until, _ in entries:
                _, name, labels, _ = json.loads(key)
                if until < now:
                    continue
                if name == names.BACKEND_UP:
                    least[labels["backend"]] = min(value, least.get(labels["backend"], value))
                elif "queue" in labels:
                    place = (name, labels["queue"], labels["backend"])
                    greatest[place] = max(value, greatest.get(place, value))
        up = GaugeMetricFamily(names.BACKEND_UP, BackendUp.text, labels=("backend",))
        for backend, value in least.items():
            up.add_metric((backend,), value)
        yield up
        for name, text in SHARED:
            family = GaugeMetricFamily(name, text, labels=("queue", "backend"))
            for (of, queue, backend), value in greatest.items():
                if of == name:
                    family.add_metric((queue, backend), value)
            yield family


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # a process of another user
    return True
