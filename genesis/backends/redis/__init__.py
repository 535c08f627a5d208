"""The Redis backend: queues shared by any number of processes.

`backend` implements the interface, `core` the protocol without I/O, `driver` runs the cores, `link`
keeps a connection alive, and `lua/` holds the atomic operations. README.md explains the protocol.
"""

from genesis.backends.redis.backend import RedisBackend

__all__ = ["RedisBackend"]
