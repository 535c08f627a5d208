"""Log events on the stdlib logger `genesis`, and the handler with which `configure` writes log lines.

An event and its fields, with structlog's context variables, go to the stdlib logger twice: as text, so
that any handler shows them, and as `extra`, so that a JSON formatter (or structlog's ProcessorFormatter
with ExtraAdder) gets fields. Nothing is printed until the application configures logging.
"""

from __future__ import annotations

import inspect
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

import structlog

DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR

# Names that `logging` does not accept in `extra`. The application might bind one as a context variable.
_RESERVED = {*vars(logging.makeLogRecord({})), "message", "asctime"}

_MAX_LINES = 10_000  # unwritten lines: a few seconds of a busy process, a few megabytes


def own_logger() -> logging.Logger:
    """The logger `genesis`, for the library's own messages, without "last resort" output on stderr.

    `logging.config.dictConfig` disables every existing logger that it does not name. That is rarely
    intended, so the logger is enabled again; an application that wants silence sets a level.
    """
    logger = logging.getLogger("genesis")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    logger.disabled = False
    return logger


class Log:
    """Writes events to the given logger, or to the logger `genesis`.

    Args:
        logger: a stdlib logger or LoggerAdapter, or an object with structlog's
            `log(level, event, **fields)`. For an AsyncBoundLogger, the synchronous logger that it
            wraps is used.

    Raises:
        TypeError: `logger.log` is a coroutine function, and the logger is not an AsyncBoundLogger.
    """

    def __init__(self, logger: Any = None) -> None:
        own = own_logger() if logger is None else None
        self._logger: Any = own or logger
        self._is_stdlib = isinstance(self._logger, (logging.Logger, logging.LoggerAdapter))
        self.enabled: Callable[[int], bool] = lambda _: True
        if not self._is_stdlib:
            _synchronous(logger)  # raises at once
        elif own is not None:
            self.enabled = _re_enabling(own)
        else:
            self.enabled = logger.isEnabledFor
            if isinstance(logger, logging.Logger) and not logger.handlers:
                logger.addHandler(logging.NullHandler())

    def write(self, level: int, event: str, **fields: Any) -> None:
        logger = self._logger
        if not self._is_stdlib:  # structlog might be configured after the logger was given
            _synchronous(logger).log(level, event, **fields)
            return
        merged = structlog.contextvars.merge_contextvars(None, "", {"event": event, **fields})
        del merged["event"]
        # repr: an id with a newline must not start a new line.
        text = " ".join([event, *(f"{name}={value!r}" for name, value in merged.items())])
        extra = {f"{name}_" if name in _RESERVED else name: value for name, value in merged.items()}
        options: Any = {}
        if isinstance(logger, logging.LoggerAdapter):
            # Its own `log` replaces `extra` before Python 3.13.
            text, options = logger.process(text, {"extra": {}})
            extra = {**(options.pop("extra", None) or {}), **extra}
            logger = logger.logger
        logger.log(level, "%s", text, extra={**extra, "event": event}, **options)


def _synchronous(logger: Any) -> Any:
    bound = logger
    if type(logger).__module__.startswith("structlog.") and hasattr(logger, "bind"):
        bound = logger.bind()  # resolves a lazy proxy
    if isinstance(bound, structlog.stdlib.AsyncBoundLogger):
        return bound.sync_bl
    if inspect.iscoroutinefunction(getattr(bound, "log", None)):
        raise TypeError(
            f"logger must have a plain `log` method, got {type(logger).__name__}, whose `log` is a "
            "coroutine function; give the logger that it wraps"
        )
    return logger


def _re_enabling(logger: logging.Logger) -> Callable[[int], bool]:
    def enabled(level: int) -> bool:
        if logger.disabled:
            logger.disabled = False
        return logger.isEnabledFor(level)

    return enabled


def safe_repr(value: Any) -> str:
    """`repr` of an application's value. Never raises."""
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__}: its repr raised {type(error).__name__}>"


class ThreadedStreamHandler(logging.Handler):
    """Writes to `stream` from its own thread, in order, because the stream might block.

    A pipe without a reader, or a disk that hangs, would otherwise block the event loop at the next log
    line. All calls of the process, and the heartbeat that keeps their slots, would stop with it.

    A line is formatted by the caller, because only there its span and its context variables are
    current. A line is dropped if `_MAX_LINES` lines wait for a blocked stream, and if the stream
    raises. For a dropped line of the logger `genesis`, `emit` raises, and the observing layer counts
    it. Other lines are dropped silently, because no application expects a log call to raise.

    Args:
        stream: stderr if None.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = sys.stderr if stream is None else stream
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._lines: queue.Queue[str | None] = queue.Queue(_MAX_LINES)  # None ends the thread
        self._error: Exception | None = None  # raised by the stream for an earlier line
        self._thread = threading.Thread(target=self._write, name="genesis-log-writer", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._start_if_forked()
            self._lines.put_nowait(self._line(record))
        except Exception:
            if record.name == "genesis":
                raise
        if record.name == "genesis" and (error := self._error) is not None:
            self._error = None
            raise error

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record)
        except Exception as error:
            if record.name == "genesis":
                raise
            # The arguments do not fit the text, or an extra field disturbs the formatter.
            text = f"{safe_repr(record.msg)} % {safe_repr(record.args)}: {safe_repr(error)}"
            plain = logging.LogRecord(record.name, record.levelno, "", 0, text, (), record.exc_info)
            return self.format(plain)

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
