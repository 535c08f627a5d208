"""The line shared through Redis, by any number of processes.

`backend` carries out the protocol, `ledger` is what this instance has, `heartbeat` compares it with
what Redis has, `link` and `subscriber` are the two connections, `lua/` holds the atomic operations.
"""

from genesis.backends.redis.backend import RedisBackend

__all__ = ["RedisBackend"]
