"""Every interleaving of the shipped core and the shipped scripts, within bounds: `python -m tests.protocol`."""
