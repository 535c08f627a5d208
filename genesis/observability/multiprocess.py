"""prometheus_client's multiprocess mode: several workers behind one port keep their values in files.

prometheus_client reads PROMETHEUS_MULTIPROC_DIR once, when it is imported. A scrape of one worker
returns the metrics of all workers.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client import values
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from genesis.observability import names
from genesis.observability.logs import own_logger
from genesis.observability.shared import GAUGES

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_NEVER = 1.0  # the expiry of an unknown value: it has always expired
_OF_LIVE = re.compile(r"gauge_live[a-z]+_(\d+)\.db|genesis_(\d+)\.shared")  # files of live processes
_LABELS = {name: labels for name, _, labels in GAUGES}


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


def served_directory() -> str | None:
    """As `directory`; logs an error, too, if this looks like one of several workers and it is None."""
    path = directory()
    is_child = multiprocessing.parent_process() is not None
    if path is None and (is_child or "gunicorn" in os.environ.get("SERVER_SOFTWARE", "")):
        _log_once(
            "this process looks like one of several workers of a server. A scrape reads the metrics of "
            f"whichever worker answers it. Set {VARIABLE} to an empty directory before the server "
            "starts, so that each worker answers with the metrics of all.",
        )
    return path


_logged: set[str] = set()


def _log_once(text: str) -> None:
    """Log an error as soon as there is a handler that shows it. Never raises."""
    logger = own_logger()
    handlers = [*logger.handlers, *(logger.root.handlers if logger.propagate else ())]
    if text not in _logged and any(not isinstance(each, logging.NullHandler) for each in handlers):
        _logged.add(text)
        with suppress(Exception):  # from a handler whose stream is broken
            logger.error(text)


class SharedFiles:
    """Writes the gauges of `shared` to a file of this process, together with their expiry.

    prometheus_client's collector knows no expiry, so the file's name is none that it reads.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._process = 0
        self._file: Any = None
        self._locks: dict[int, threading.RLock] = {}  # a forked child needs its own

    def publish(self, name: str, labels: tuple[str, ...], value: float | None, seconds: float) -> None:
        value, until = (0.0, _NEVER) if value is None else (float(value), time.time() + seconds)
        key = json.dumps([name, dict(zip(_LABELS[name], labels, strict=True))])
        process = os.getpid()
        with self._locks.setdefault(process, threading.RLock()):
            if self._process != process:
                file = Path(self._path, f"genesis_{process}.shared")
                file.unlink(missing_ok=True)  # left by a killed process with the same pid
                self._file = MmapedDict(str(file))  # type: ignore[no-untyped-call]
                self._process = process
            self._file.write_value(key, value, until)


class AllProcesses(MultiProcessCollector):
    """The metrics of all processes, without the gauges of dead processes.

    uvicorn has no hook for a dead worker, and a killed process runs no hook. Each scrape therefore
    checks which processes are alive.
    """

    def collect(self) -> Iterator[Any]:
        self._remove_dead()
        ours = {name: GaugeMetricFamily(name, text) for name, text, _ in GAUGES}
        yield from self.merge(self._files("*.db"))  # type: ignore[no-untyped-call]
        for key, value in self._unexpired().items():
            name, labels = json.loads(key)
            ours[name].add_sample(name, labels, value)
        yield from ours.values()

    def _remove_dead(self) -> None:
        for file in Path(self._path).iterdir():
            match = _OF_LIVE.fullmatch(file.name)
            if match and not _is_alive(int(match[1] or match[2])):
                file.unlink(missing_ok=True)  # another worker's scrape might be faster

    def _unexpired(self) -> dict[str, float]:
        """The unexpired gauges over all processes, by key: the maximum, and the minimum of `up`."""
        now = time.time()
        found: dict[str, float] = {}
        for file in self._files("genesis_*.shared"):
            try:
                entries = MmapedDict.read_all_values_from_file(file)  # type: ignore[no-untyped-call]
            except FileNotFoundError:
                continue
            for key, value, until, _ in entries:
                if until >= now:
                    choose = min if json.loads(key)[0] == names.BACKEND_UP else max
                    found[key] = choose(value, found.get(key, value))
        return found

    def _files(self, pattern: str) -> Iterator[str]:
        """The files, but for those that are gone meanwhile, or that a process is just creating."""
        for file in Path(self._path).glob(pattern):
            with suppress(FileNotFoundError):
                if file.stat().st_size:
                    yield str(file)


def left_gauges() -> Iterator[tuple[str, dict[str, str]]]:
    """Names and labels in the file of this pid, which a killed process might have left."""
    path = Path(os.environ[VARIABLE], f"gauge_livesum_{os.getpid()}.db")
    if path.exists() and path.stat().st_size:
        for key, *_ in MmapedDict.read_all_values_from_file(str(path)):  # type: ignore[no-untyped-call]
            _, name, labels, _ = json.loads(key)
            yield name, labels


def _is_alive(pid: int) -> bool:
    try:
        if os.name == "posix":  # elsewhere this would kill it
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # a process of another user
    return True
