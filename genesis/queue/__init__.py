"""The waiting line: `Queue`, and the backends that store it."""

from genesis.backends.memory import InMemoryBackend
from genesis.backends.protocol import QueueBackend, QueueEntry, QueueStats, WaitStatus
from genesis.backends.redis import RedisBackend
from genesis.exceptions import QueueDrainingError, QueueFullError
from genesis.queue.disconnect import until_disconnected
from genesis.queue.queue import Queue
from genesis.queue.request import SlotRequest
from genesis.queue.semaphore import QueueSemaphore
from genesis.queue.slot import Slot

__all__ = [
    "InMemoryBackend",
    "Queue",
    "QueueBackend",
    "QueueDrainingError",
    "QueueEntry",
    "QueueFullError",
    "QueueSemaphore",
    "QueueStats",
    "RedisBackend",
    "Slot",
    "SlotRequest",
    "WaitStatus",
    "until_disconnected",
]
