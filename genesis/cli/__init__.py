"""The command line for queues in Redis. README.md in this folder shows each command.

It reads the index with plain commands, and the queues with the backend's own scripts. It is not an
instance: it has no lease, no heartbeat and no tickets.
"""
