"""prometheus_client's multiprocess mode: several workers behind one port keep their values in files.

prometheus_client reads PROMETHEUS_MULTIPROC_DIR once, when it is imported. A scrape of one worker
returns the metrics of all workers.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, Gauge, values
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from genesis.observability import names
from genesis.observability.logs import own_logger
from genesis.observability.shared import GAUGES

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_MODE: Final = "livemax"
_NEVER = 1.0  # the expiry of an unknown value: it has always expired
_LIVE_FILE = re.compile(r"gauge_live[a-z]+_(\d+)\.db")


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
    is_child = multiprocessing.parent_process() is not None
    if (is_child or "gunicorn" in os.environ.get("SERVER_SOFTWARE", "")) and directory() is None:
        _log_once(
            "this process looks like one of several workers of a server. A scrape reads the metrics of "
            f"whichever worker answers it. Set {VARIABLE} to an empty directory before the server "
            "starts, so that each worker answers with the metrics of all.",
        )


@cache
def _log_once(text: str) -> None:
    own_logger().error(text)


class SharedFiles:
    """Writes the gauges of `shared` to this process's file, together with their expiry.

    A value written before a fork is 0 in the child's file, and has expired there.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._gauges = {
            name: Gauge(name, text, labels, registry=registry, multiprocess_mode=_MODE)
            for name, text, labels in GAUGES
        }

    def publish(self, name: str, labels: tuple[str, ...], value: float | None, seconds: float) -> None:
        value, until = (0.0, _NEVER) if value is None else (float(value), time.time() + seconds)
        self._gauges[name].labels(*labels)._value.set(value, timestamp=until)


class AllProcesses(MultiProcessCollector):
    """The metrics of all processes, without the gauges of dead processes.

    uvicorn has no hook for a dead worker, and a killed process runs no hook. Each scrape therefore
    checks which processes are alive.
    """

    def collect(self) -> Iterator[Any]:
        self._remove_dead()
        ours = {name: GaugeMetricFamily(name, text) for name, text, _ in GAUGES}
        for metric in super().collect():  # type: ignore[no-untyped-call]
            if metric.name not in ours:
                yield metric
        for key, value in self._unexpired().items():
            name, _, labels, _ = json.loads(key)
            if name in ours:
                ours[name].add_sample(name, labels, value)
        yield from ours.values()

    def _remove_dead(self) -> None:
        files = [file.name for file in Path(self._path).iterdir()]
        for pid in {match[1] for match in map(_LIVE_FILE.fullmatch, files) if match}:
            if not _is_alive(int(pid)):
                try:
                    mark_process_dead(int(pid), self._path)  # type: ignore[no-untyped-call]
                except FileNotFoundError:
                    continue  # another worker's scrape was faster

    def _unexpired(self) -> dict[str, float]:
        """The unexpired gauges over all processes, by key: the maximum, and the minimum of `up`."""
        now = time.time()
        found: dict[str, float] = {}
        for file in Path(self._path).glob(f"gauge_{_MODE}_*.db"):
            try:
                entries = list(MmapedDict.read_all_values_from_file(str(file)))  # type: ignore[no-untyped-call]
            except FileNotFoundError:
                continue
            for key, value, until, _ in entries:
                if until >= now:
                    choose = min if json.loads(key)[0] == names.BACKEND_UP else max
                    found[key] = choose(value, found.get(key, value))
        return found


def _is_alive(pid: int) -> bool:
    try:
        if os.name == "posix":  # elsewhere this would kill it
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # a process of another user
    return True
