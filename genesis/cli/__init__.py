"""The command line for queues in Redis. README.md in this folder shows each command."""
