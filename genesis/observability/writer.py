"""A log handler whose stream may block: the writing is left to a thread.

A pipe that nobody reads, or a disk that hangs, would otherwise stop the event loop at the next log
line, and with it every call of the process and the heartbeat that keeps their slots.
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

_MOST_LINES = 10_000  # that wait to be written: some seconds of a busy process, some megabytes


class ThreadedStreamHandler(logging.Handler):
    """Writes to `stream` from a thread of its own, in order.

    A line is made where it is logged, because the span and the context variables that belong to it are
    known only there. Lines are dropped while `most_lines` wait for a stream that is blocked, and when
    the stream refuses them. For a dropped line of the logger `genesis` an error is raised, which the
    observing layer counts; of others' lines nothing is said, because no application expects a log call
    to raise.

    Args:
        stream: stderr if None.
        most_lines: that may wait to be written.
    """

    def __init__(self, stream: TextIO | None = None, most_lines: int = _MOST_LINES) -> None:
        super().__init__()
        self._stream = sys.stderr if stream is None else stream
        self._most_lines = most_lines
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lines: queue.Queue[str | None] = queue.Queue(self._most_lines)  # None ends the thread
        self._refusal: Exception | None = None  # of the stream, for the line before
        self._thread = threading.Thread(target=self._write, name="genesis-log-writer", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._begin_if_forked()
            self._lines.put_nowait(self.format(record))
        except Exception:
            if record.name == "genesis":
                raise
        if record.name == "genesis" and (refusal := self._refusal) is not None:
            self._refusal = None
            raise refusal

    def stop(self, timeout: float) -> bool:
        """Write what is there and end the thread; returns whether it did within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        self._begin_if_forked()
        try:
            self._lines.put(None, timeout=timeout)
        except queue.Full:
            return False
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _begin_if_forked(self) -> None:
        # A fork takes no thread along. The lines that wait are the parent's to write, and their lock
        # may have been held by somebody who is not here to let it go.
        if self._process != os.getpid():
            self._begin()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(f"{line}\n")
                self._stream.flush()
            except Exception as error:
                self._refusal = error
