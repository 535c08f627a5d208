"""Every interleaving of the shipped core and scripts, within bounds: `python -m tests.protocol`."""
