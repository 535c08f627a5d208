"""The command line for queues in Redis. README.md in this folder shows each command.

It reads with plain commands and one read-only script, and writes with the backend's own scripts. It is
not an instance: it has no lease, no heartbeat and no tickets.
"""
