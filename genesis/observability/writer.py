"""A log handler that writes in a thread, because its stream might block.

A pipe without a reader, or a disk that hangs, would otherwise block the event loop at the next log
line. All calls of the process, and the heartbeat that keeps their slots, would stop with it.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from typing import TextIO

__all__ = ["ThreadedStreamHandler"]

_MAX_LINES = 10_000  # unwritten lines: a few seconds of a busy process, a few megabytes


class ThreadedStreamHandler(logging.Handler):
    """Writes to `stream` from its own thread, in order.

    A line is formatted by the caller, because only there its span and its context variables are
    current. A line is dropped if `max_lines` lines wait for a blocked stream, and if the stream raises.
    For a dropped line of the logger `genesis`, `emit` raises, and the observing layer counts it. Other
    lines are dropped silently, because no application expects a log call to raise.

    Args:
        stream: stderr if None.
        max_lines: the maximum number of lines waiting to be written.
    """

    def __init__(self, stream: TextIO | None = None, max_lines: int = _MAX_LINES) -> None:
        super().__init__()
        self._stream = sys.stderr if stream is None else stream
        self._max_lines = max_lines
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._lines: queue.Queue[str | None] = queue.Queue(self._max_lines)  # None ends the thread
        self._error: Exception | None = None  # raised by the stream for an earlier line
        self._thread = threading.Thread(target=self._write, name="genesis-log-writer", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._start_if_forked()
            self._lines.put_nowait(self.format(record))
        except Exception:
            if record.name == "genesis":
                raise
        if record.name == "genesis" and (error := self._error) is not None:
            self._error = None
            raise error

    def stop(self, timeout: float) -> bool:
        """Write the queued lines and end the thread. Returns False if `timeout` seconds pass first."""
        deadline = time.monotonic() + timeout
        self._start_if_forked()
        try:
            self._lines.put(None, timeout=timeout)
        except queue.Full:
            return False
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _start_if_forked(self) -> None:
        # A forked child has no writer thread. The parent writes the queued lines, and a thread of the
        # parent might have held the queue's lock during the fork.
        if self._process != os.getpid():
            self._start()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(f"{line}\n")
                self._stream.flush()
            except Exception as error:
                self._error = error
