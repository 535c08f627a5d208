"""genesis: a fair waiting line for calls, in one process or many. Every operation is observed."""

from genesis.exceptions import (
    BackendUnavailableError,
    EvictedError,
    GenesisError,
    LimitMismatchError,
    QueueDrainingError,
    QueueFullError,
    QueueTimeoutError,
    SlotLostError,
)
from genesis.queue import Queue, RedisBackend, WaitStatus, until_disconnected
from genesis.version import VERSION

__all__ = [
    "BackendUnavailableError",
    "EvictedError",
    "GenesisError",
    "LimitMismatchError",
    "Queue",
    "QueueDrainingError",
    "QueueFullError",
    "QueueTimeoutError",
    "RedisBackend",
    "SlotLostError",
    "WaitStatus",
    "__version__",
    "until_disconnected",
]

__version__ = VERSION
