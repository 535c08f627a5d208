"""Dashboards and rules, and how to serve them. `python -m dashboards.generate` writes the JSON."""
