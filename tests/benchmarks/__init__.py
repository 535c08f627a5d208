"""Runnable benchmarks: `python -m tests.benchmarks.<name>`."""
