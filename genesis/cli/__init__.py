"""The command line: what operators ask of queues in Redis. README.md in this folder shows each command.

It reads by plain commands and one script that changes nothing, and acts by the backend's own scripts.
It is no instance: it has no lease, no heartbeat and no place in a line.
"""
