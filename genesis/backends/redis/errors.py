"""Classification of connection errors: a reason for a metric label, and whether a retry can help."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator

import hiredis
from redis import exceptions as redis_errors

__all__ = ["ConnectionLost", "is_permanent", "reason_of"]


class ConnectionLost(Exception):  # noqa: N818 - passed to callbacks as a reply
    """The connection ended before the reply came. Redis might have run the command.

    Attributes:
        reason: a value of `reason_of`, or `closed` (by this process), or `idle_closed` (by the server
            or the network, while the connection was idle).
        detail: the error text, without credentials.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


# The first match counts: some of these classes derive from classes further down.
_REASONS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((redis_errors.AuthenticationError, redis_errors.AuthorizationError), "denied"),
    ((redis_errors.NoPermissionError,), "denied"),
    ((redis_errors.NoScriptError,), "scripts_lost"),
    ((redis_errors.ReadOnlyError, redis_errors.MasterDownError), "read_only"),
    ((redis_errors.BusyLoadingError,), "loading"),
    ((redis_errors.ClusterDownError,), "cluster_down"),
    ((redis_errors.AskError, redis_errors.TryAgainError), "slot_moving"),
    ((redis_errors.TimeoutError, TimeoutError, asyncio.TimeoutError), "timeout"),
    ((redis_errors.ResponseError, hiredis.ReplyError), "refused"),
    ((redis_errors.ConnectionError, OSError), "connection"),
)
_REASONS_OF_REPLIES = {
    "NOPERM": "denied",
    "NOAUTH": "denied",
    "WRONGPASS": "denied",
    "NOSCRIPT": "scripts_lost",
    "READONLY": "read_only",
    "MASTERDOWN": "read_only",
    "LOADING": "loading",
    "CLUSTERDOWN": "cluster_down",
    "MOVED": "slot_moving",
    "ASK": "slot_moving",
    "TRYAGAIN": "slot_moving",
}


def reason_of(error: BaseException) -> str:
    """Map an error reply or a connection error to one of a few reasons, for a metric label."""
    if isinstance(error, ConnectionLost):
        return error.reason
    if isinstance(error, hiredis.ReplyError):
        text = str(error)
        known = _REASONS_OF_REPLIES.get(text.partition(" ")[0])
        if known is not None:
            return known
        # Before 7.0, Redis wraps the error of a command inside a script.
        for word in ("READONLY", "MASTERDOWN", "LOADING"):
            if f"-{word} " in text:
                return _REASONS_OF_REPLIES[word]
    for kinds, reason in _REASONS:
        if isinstance(error, kinds):
            return reason
    return "other"


def is_permanent(error: BaseException, was_up: bool) -> bool:
    """Whether a retry will most likely fail too; `was_up`: a connection has succeeded before."""
    for cause in _chain(error):
        if isinstance(cause, socket.gaierror):
            return cause.errno != socket.EAI_AGAIN or not was_up
        if isinstance(cause, ssl.SSLError):
            return not isinstance(cause, ssl.SSLEOFError)
    if isinstance(error, redis_errors.OutOfMemoryError):
        return False
    return reason_of(error) in ("denied", "refused")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
