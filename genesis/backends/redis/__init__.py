"""The Redis backend: queues shared by any number of processes. README.md explains it."""

from genesis.backends.redis.backend import RedisBackend

__all__ = ["RedisBackend"]
