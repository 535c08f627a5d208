"""genesis: a fair waiting line for calls, in one process or across many, in which all is observed."""

from genesis.exceptions import (
    BackendUnavailableError,
    EvictedError,
    GenesisError,
    LimitMismatchError,
    QueueTimeoutError,
    SlotLostError,
)
from genesis.queue import Queue
from genesis.version import VERSION

__all__ = [
    "BackendUnavailableError",
    "EvictedError",
    "GenesisError",
    "LimitMismatchError",
    "Queue",
    "QueueTimeoutError",
    "SlotLostError",
    "__version__",
]

__version__ = VERSION
