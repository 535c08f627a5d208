"""What went wrong on the way to Redis, in words fit for a label, and whether waiting mends it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator

import hiredis
from redis import exceptions as redis_errors

__all__ = ["ConnectionLost", "is_lasting", "reason_of"]


class ConnectionLost(Exception):  # noqa: N818 - the fact that a command was not answered
    """The connection ended before the reply came; whether Redis ran the command is unknown.

    Attributes:
        reason: one of the words of `reason_of`, `closed` (by this process) or `idle_closed` (by the
            other side, or by the network, while the connection was not in use).
        detail: in words, without credentials.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


# The first that fits: some of redis-py's errors are kinds of others further down.
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
    """An error reply, or why a connection was lost or not made, as one of a few words for a label."""
    if isinstance(error, ConnectionLost):
        return error.reason
    if isinstance(error, hiredis.ReplyError):
        text = str(error)
        known = _REASONS_OF_REPLIES.get(text.partition(" ")[0])
        if known is not None:
            return known
        # Before 7.0, Redis wraps what a command inside a script was rejected with.
        for word in ("READONLY", "MASTERDOWN", "LOADING"):
            if f"-{word} " in text:
                return _REASONS_OF_REPLIES[word]
    for kinds, reason in _REASONS:
        if isinstance(error, kinds):
            return reason
    return "other"


def is_lasting(error: BaseException, was_up: bool) -> bool:
    """Whether the next attempt will most likely fail for the same cause."""
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
