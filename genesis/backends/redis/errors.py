"""Classification of connection errors: a reason for a metric label, and whether a retry can help."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl

import hiredis
from redis import exceptions as redis_errors
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError


class ConnectionLost(Exception):  # noqa: N818 - passed to callbacks as a reply
    """The connection ended before the reply came. Redis might have run the command.

    Attributes:
        reason: a value of `reason_of`, or `closed` (by this process), or `idle_closed` (by the server
            or the network, while the connection was idle).
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)  # without credentials
        self.reason = reason


class NoMasterError(redis_errors.ConnectionError):
    """No Sentinel names the master.

    Attributes:
        permanent: see `is_permanent`.
    """

    def __init__(self, detail: str, permanent: bool) -> None:
        super().__init__(f"no Sentinel names the master: {detail}")
        self.permanent = permanent


_Kinds = tuple[type[BaseException], ...]
_DENIALS = (AuthenticationError, AuthorizationError, NoPermissionError)
# Reason, first words of error replies, and what redis-py raises while it connects. The first match
# counts: some of these classes derive from classes further down.
_REASONS: tuple[tuple[str, tuple[str, ...], _Kinds], ...] = (
    ("denied", ("NOPERM", "NOAUTH", "WRONGPASS"), _DENIALS),
    ("scripts_lost", ("NOSCRIPT",), (redis_errors.NoScriptError,)),
    (
        "read_only",
        ("READONLY", "MASTERDOWN"),
        (redis_errors.ReadOnlyError, redis_errors.MasterDownError),
    ),
    ("loading", ("LOADING",), (redis_errors.BusyLoadingError,)),
    ("cluster_down", ("CLUSTERDOWN",), (redis_errors.ClusterDownError,)),
    (
        "slot_moving",
        ("MOVED", "ASK", "TRYAGAIN"),
        (redis_errors.AskError, redis_errors.TryAgainError),
    ),
    ("timeout", (), (redis_errors.TimeoutError, TimeoutError, asyncio.TimeoutError)),
    ("refused", (), (redis_errors.ResponseError, hiredis.ReplyError)),
    ("connection", (), (redis_errors.ConnectionError, OSError)),
)
# Before 7.0, Redis wraps the error of a command inside a script.
_WRAPPED = re.compile("-(READONLY|MASTERDOWN|LOADING) ")
# Redis rejects commands for a while: a slow script, no memory, no disk, too few replicas.
_PASSING = ("BUSY ", "OOM ", "MISCONF ", "NOREPLICAS ")


def reason_of(error: BaseException) -> str:
    """Map an error reply or a connection error to one of a few reasons, for a metric label."""
    if isinstance(error, ConnectionLost):
        return error.reason
    word = ""
    if isinstance(error, hiredis.ReplyError):
        wrapped = _WRAPPED.search(str(error))
        word = wrapped[1] if wrapped else str(error).partition(" ")[0]
    for reason, words, kinds in _REASONS:
        if word in words or isinstance(error, kinds):
            return reason
    return "other"


def is_permanent(error: BaseException, was_up: bool) -> bool:
    """Whether a retry will most likely fail too; `was_up`: a connection has succeeded before."""
    if isinstance(error, NoMasterError):
        return error.permanent
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return not was_up  # Kubernetes knows no address while the server's pod restarts
        if isinstance(cause, ssl.SSLError):
            return not isinstance(cause, ssl.SSLEOFError)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, redis_errors.OutOfMemoryError) or str(error).startswith(_PASSING):
        return False
    return reason_of(error) in ("denied", "refused")
