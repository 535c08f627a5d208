"""A whole dashboard: its variables, its links to others, and its panels row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dashboards.panels import LOKI, PROMETHEUS, Json

SCHEMA_VERSION = 41  # Grafana 11.6 and later


COLUMNS = 24


def heading(title: str) -> Json:
    return {"type": "row", "title": title, "collapsed": False, "panels": []}


def datasource_variable(name: str, label: str, plugin: str) -> Json:
    return {
        "type": "datasource",
        "name": name,
        "label": label,
        "query": plugin,
        "current": {},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "refresh": 1,
        "regex": "",
    }


def label_variable(
    name: str,
    label: str,
    description: str,
    metric: str,
    *,
    of: str = "",
    several: bool = True,
    all_is: str | None = ".+",
) -> Json:
    """The values of a label; `of` restricts them by another variable. All is the pattern `all_is`, or
    the list of all values."""
    query = f"label_values({metric}{{{of}}}, {name})" if of else f"label_values({metric}, {name})"
    return {
        "type": "query",
        "name": name,
        "label": label,
        "description": description,
        "datasource": PROMETHEUS,
        "query": {"query": query, "refId": f"Variable-{name}"},
        "refresh": 2,  # when the time range changes: queues and instances come and go
        "sort": 1,
        "hide": 0,
        "multi": several,
        "includeAll": True,  # also for one: the others' links may bring All along
        **({"allValue": all_is} if all_is else {}),
        "current": {"text": ["All"], "value": ["$__all"]} if several else {},
        "regex": "",
    }


def log_label_variable(name: str, label: str, description: str, loki_label: str) -> Json:
    return {
        "type": "query",
        "name": name,
        "label": label,
        "description": description,
        "datasource": LOKI,
        "query": {"label": loki_label, "refId": f"Variable-{name}", "stream": "", "type": 1},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "multi": False,
        "includeAll": False,
        "current": {},
        "regex": "",
    }


def text_variable(name: str, label: str, description: str, *, hidden: bool = False) -> Json:
    return {
        "type": "textbox",
        "name": name,
        "label": label,
        "description": description,
        "query": "",
        "current": {"text": "", "value": ""},
        "hide": 2 if hidden else 0,
    }


def to_dashboard(uid: str, title: str) -> Json:
    """A link at the top of a dashboard to another one; it keeps variables and time."""
    return {
        "type": "link",
        "title": title,
        "url": f"/d/{uid}",
        "icon": "dashboard",
        "tooltip": "",
        "tags": [],
        "asDropdown": False,
        "targetBlank": False,
        "includeVars": True,
        "keepTime": True,
    }


def cell_link(title: str, url: str) -> Json:
    return {"title": title, "url": url, "targetBlank": False}


class Row(NamedTuple):
    """A row of panels: its height, and the width of each panel."""

    height: int
    panels: Sequence[tuple[int, Json]]


def board(
    uid: str,
    title: str,
    description: str,
    *,
    variables: Sequence[Json],
    links: Sequence[Json],
    rows: Sequence[Row | str],
    since: str,
) -> Json:
    """A dashboard of `rows`, from top to bottom; a str is a heading."""
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["genesis"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,  # one crosshair over all panels
        "timezone": "browser",
        "time": {"from": since, "to": "now"},
        "timepicker": {"refresh_intervals": ["5s", "10s", "30s", "1m", "5m"], "hidden": False},
        "refresh": "30s",
        "templating": {"list": list(variables)},
        "annotations": {"list": []},
        "links": list(links),
        "panels": _placed(rows),
    }


def _placed(rows: Sequence[Row | str]) -> list[Json]:
    panels: list[Json] = []
    y = 0

    def place(panel: Json, x: int, width: int, height: int) -> None:
        at = {"x": x, "y": y, "w": width, "h": height}
        panels.append({"id": len(panels) + 1, **panel, "gridPos": at})

    for row in rows:
        if isinstance(row, str):
            place(heading(row), 0, COLUMNS, 1)
            y += 1
            continue
        x = 0
        for width, panel in row.panels:
            place(panel, x, width, row.height)
            x += width
        y += row.height
    return panels
