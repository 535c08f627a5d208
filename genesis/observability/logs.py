"""Log events: structlog over the stdlib logger `genesis`, structlog's global set-up untouched.

The event and its fields go to the stdlib logger twice: as text, so that any handler shows them, and
as `extra`, so that a JSON formatter, or structlog's ProcessorFormatter with ExtraAdder, has them as
fields. Until the application configures logging, nothing is printed.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

import structlog

__all__ = ["DEBUG", "ERROR", "INFO", "WARNING", "Log"]

DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR

# What `logging` refuses to have in `extra`. An application may have bound such a name as its context.
_TAKEN = {*vars(logging.makeLogRecord({})), "message", "asctime"}


class Log:
    """Writes events to the `genesis` logger, or to the one given.

    Args:
        logger: a stdlib logger, or anything with structlog's `log(level, event, **fields)`.
    """

    def __init__(self, logger: Any = None) -> None:
        stdlib = logging.getLogger("genesis") if logger is None else logger
        if isinstance(stdlib, logging.Logger):
            if not stdlib.handlers:
                stdlib.addHandler(logging.NullHandler())  # no "last resort" lines on stderr
            self.enabled = stdlib.isEnabledFor
            self._logger: Any = structlog.wrap_logger(
                stdlib,
                processors=[structlog.contextvars.merge_contextvars, _to_stdlib],
                wrapper_class=structlog.stdlib.BoundLogger,
                cache_logger_on_first_use=True,
            )
        else:
            self.enabled = _always
            self._logger = stdlib

    def write(self, level: int, event: str, **fields: Any) -> None:
        self._logger.log(level, event, **fields)


def _always(level: int) -> bool:  # noqa: ARG001
    return True


def _to_stdlib(
    logger: Any,  # noqa: ARG001
    method: str,  # noqa: ARG001
    fields: MutableMapping[str, Any],
) -> tuple[tuple[str, ...], dict[str, Any]]:
    event = str(fields.pop("event"))
    # repr: an id with a newline must not begin a line of its own.
    text = " ".join([event, *(f"{name}={value!r}" for name, value in fields.items())])
    extra = {f"{name}_" if name in _TAKEN else name: value for name, value in fields.items()}
    return ("%s", text), {"extra": {"event": event, **extra}}
