"""Dashboards, rules and what serves them. `python -m dashboards.generate` writes the Grafana JSON."""
