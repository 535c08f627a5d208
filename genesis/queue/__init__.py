"""The waiting line: `Queue`, and the backends that may keep it."""

from genesis.backends.memory import InMemoryBackend
from genesis.backends.protocol import QueueBackend, QueueEntry, QueueStats
from genesis.backends.redis import RedisBackend
from genesis.queue.queue import Queue, QueueSemaphore, SlotRequest
from genesis.queue.slot import Slot

__all__ = [
    "InMemoryBackend",
    "Queue",
    "QueueBackend",
    "QueueEntry",
    "QueueSemaphore",
    "QueueStats",
    "RedisBackend",
    "Slot",
    "SlotRequest",
]
