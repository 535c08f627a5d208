"""Queries to Loki, over the JSON lines that the library logs."""

from __future__ import annotations

from dashboards.promql import SHOWN

LINES = '{service_name=~"$service"}'


SHORT = (
    "{{.event}} {{.item_id}} queue={{.queue_id}} on={{.instance_id}}"
    "{{ if .waited }} waited={{ round .waited 3 }} s{{ end }}"
    "{{ if .held }} held={{ round .held 3 }} s{{ end }}"
)


def log_of_queue() -> str:
    return f'{LINES} |= "queue_id" | json | queue_id=~"$queue" | line_format "{SHORT}"'


def log_of_call() -> str:
    # Not |= "$item_id": in the JSON line a letter beyond ASCII, a quote or a backslash is escaped.
    return f'{LINES} |= "item_id" | json | item_id="$item_id"'


def log_number(field: str) -> str:
    """The maximum of a number in the log of the call."""
    return f'max(max_over_time({log_of_call()} | {field}!="" | unwrap {field} [{SHOWN}]))'


def log_instances() -> str:
    # Not instance_id: in `reclaimed` it is the dead instance's, not the writer's.
    return f"count(sum by (service_instance_id) (count_over_time({log_of_call()} [{SHOWN}])))"
