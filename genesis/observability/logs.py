"""Log events: structlog over the stdlib logger `genesis`, without structlog's global configuration.

The event and its fields go to the stdlib logger twice: as text, so that any handler shows them, and as
`extra`, so that a JSON formatter (or structlog's ProcessorFormatter with ExtraAdder) gets fields.
Nothing is printed until the application configures logging.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any

import structlog

__all__ = ["DEBUG", "ERROR", "INFO", "WARNING", "Log", "own_logger"]

DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR

# Names that `logging` does not accept in `extra`. The application might bind one as a context variable.
_RESERVED = {*vars(logging.makeLogRecord({})), "message", "asctime"}


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
        logger = own or logger
        self.enabled: Callable[[int], bool]
        self._logger: Any
        if isinstance(logger, (logging.Logger, logging.LoggerAdapter)):
            if isinstance(logger, logging.Logger) and not logger.handlers:
                logger.addHandler(logging.NullHandler())
            self.enabled = logger.isEnabledFor if own is None else _re_enabling(own)
            self._logger = structlog.wrap_logger(
                logger if isinstance(logger, logging.Logger) else _Adapted(logger),
                processors=[structlog.contextvars.merge_contextvars, _to_stdlib],
                wrapper_class=structlog.stdlib.BoundLogger,
                cache_logger_on_first_use=True,
            )
        else:
            self.enabled = _always
            self._logger = _synchronous(logger)

    def write(self, level: int, event: str, **fields: Any) -> None:
        self._logger.log(level, event, **fields)


class _Adapted:
    """A LoggerAdapter that keeps the `extra` of a call. Before Python 3.13, its own replaces it."""

    def __init__(self, adapter: logging.LoggerAdapter[Any]) -> None:
        self._adapter = adapter

    def __getattr__(self, name: str) -> Any:
        return partial(self._log, getattr(logging, name.upper()))

    def _log(self, level: int, template: str, text: str, *, extra: dict[str, Any]) -> None:
        message, options = self._adapter.process(text, {"extra": {}})
        own = {**(options.pop("extra", None) or {}), **extra}
        self._adapter.logger.log(level, template, message, extra=own, **options)


def _synchronous(logger: Any) -> Any:
    bound = logger.bind() if isinstance(logger, structlog.stdlib.BoundLogger) else logger
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


def _always(level: int) -> bool:  # noqa: ARG001
    return True


def _to_stdlib(
    logger: Any,  # noqa: ARG001
    method: str,  # noqa: ARG001
    fields: MutableMapping[str, Any],
) -> tuple[tuple[str, ...], dict[str, Any]]:
    event = str(fields.pop("event"))
    # repr: an id with a newline must not start a new line.
    text = " ".join([event, *(f"{name}={value!r}" for name, value in fields.items())])
    extra = {f"{name}_" if name in _RESERVED else name: value for name, value in fields.items()}
    return ("%s", text), {"extra": {"event": event, **extra}}
