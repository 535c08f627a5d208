"""How things are drawn: the JSON that Grafana wants, and nothing about queues.

Colours are for trouble. A healthy number is plain text; orange asks for a look, red for a deed. Each
way to end has one colour everywhere (`BY_OUTCOME`). Seconds are always seconds: Grafana's own unit
changes between milliseconds, seconds and minutes from one moment to the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

Json: TypeAlias = dict[str, Any]

SCHEMA_VERSION = 41  # Grafana 11.6 and later
COLUMNS = 24

PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}
LOKI = {"type": "loki", "uid": "${loki}"}
JAEGER = {"type": "jaeger", "uid": "${jaeger}"}

PLAIN, LOOK, ACT = "transparent", "orange", "red"
SECONDS, MILLISECONDS, TIMES = "suffix:s", "suffix:ms", "suffix:x"
CLOCK = "dthms"  # 01:02:03, of what may last for hours
NO_DATA = "no data"


class Query(NamedTuple):
    """One question to Prometheus and how its series are called.

    `now` asks for the present value alone, or for one over the whole time shown.
    """

    expr: str
    legend: str = ""
    now: bool = False
    exemplars: bool = False


class Says(NamedTuple):
    """What the reader of a panel must be told: what it shows, when that is bad, and what to do then."""

    shows: str
    bad: str
    then: str

    def __str__(self) -> str:
        return f"{self.shows}\n\n**Bad:** {self.bad}\n\n**Next:** {self.then}"


# Thresholds ----------------------------------------------------------------------------------------
def never_bad() -> Json:
    return steps((PLAIN, None))


def bad_above(look: float, act: float) -> Json:
    return steps((PLAIN, None), (LOOK, look), (ACT, act))


def bad_below(look: float, act: float, *, from_zero: bool = True) -> Json:
    """Red from 0 on: no value at all has the colour of what is below. Lines have no such value."""
    if not from_zero:
        return steps((ACT, None), (LOOK, act), (PLAIN, look))
    return steps((PLAIN, None), (ACT, 0), (LOOK, act), (PLAIN, look))


def any_is_bad(least: float = 1) -> Json:
    return steps((PLAIN, None), (ACT, least))


def any_needs_a_look(least: float = 1) -> Json:
    return steps((PLAIN, None), (LOOK, least))


def steps(*colours: tuple[str, float | None]) -> Json:
    """Each colour from its number on; the first one for all that is below, and for no number at all."""
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in colours]}


# Panels --------------------------------------------------------------------------------------------
def stat(
    title: str,
    description: Says,
    unit: str,
    queries: Sequence[Query],
    *,
    thresholds: Json | None = None,
    empty: str = NO_DATA,
    empty_is_bad: bool = False,
    words: dict[float, str] | None = None,
    decimals: int | None = None,
    overrides: Sequence[Json] = (),
) -> Json:
    """A number of this moment; its background shows trouble, and nothing else does.

    `words` are shown instead of those numbers. `empty` is shown if there is no number.
    """
    assert all(query.now for query in queries), f"{title}: a range ends with what was, not with what is"
    defaults: Json = {
        "unit": unit,
        "color": {"mode": "thresholds"},
        "thresholds": thresholds or never_bad(),
        "noValue": empty,
    }
    mappings: list[Json] = []
    if words:
        texts = {
            f"{value:g}": {"text": text, "index": n} for n, (value, text) in enumerate(words.items())
        }
        mappings.append({"type": "value", "options": texts})
    if empty_is_bad:
        result = {"text": empty, "color": LOOK, "index": len(words or ())}
        mappings.append({"type": "special", "options": {"match": "null+nan", "result": result}})
    if mappings:
        defaults["mappings"] = mappings
    if decimals is not None:
        defaults["decimals"] = decimals
    options = {
        "graphMode": "none",
        "colorMode": "background",
        "justifyMode": "auto",
        "textMode": "auto" if len(queries) == 1 else "value_and_name",
        "wideLayout": True,
        "showPercentChange": False,
        "reduceOptions": {"calcs": ["lastNotNull"], "values": False},
        "percentChangeColorMode": "standard",
        "orientation": "auto",
    }
    targets = prometheus_targets(queries)
    return _panel("stat", title, description, targets, defaults, options, overrides=overrides)


def lines(
    title: str,
    description: Says,
    unit: str,
    queries: Sequence[Query],
    *,
    thresholds: Json | None = None,
    bars: bool = False,
    most: float | None = None,
    empty: str = "",
    overrides: Sequence[Json] = (),
) -> Json:
    """Lines over time, or stacked bars of what was counted, a minute or more each."""
    custom: Json = {
        "drawStyle": "bars" if bars else "line",
        "lineWidth": 1,
        "fillOpacity": 60 if bars else 0,
        "showPoints": "never",
        "axisSoftMax": 1,  # a series of zeros has an axis up to 100 otherwise
        "stacking": {"mode": "normal" if bars else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if thresholds else "off"},
    }
    defaults: Json = {
        "unit": unit,
        "min": 0,
        "color": {"mode": "palette-classic"},
        "thresholds": thresholds or never_bad(),
        "custom": custom,
    }
    if most is not None:
        defaults["max"] = most
    if empty:
        defaults["noValue"] = empty
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    targets = prometheus_targets(queries)
    panel = _panel("timeseries", title, description, targets, defaults, options, overrides=overrides)
    return {**panel, "interval": "1m"} if bars else panel


def drawn_as_limit(series: str) -> Json:
    """A line of what may be reached, dashed and without a colour of its own."""
    return override_of(
        {"id": "byName", "options": series},
        {
            "color": {"mode": "fixed", "fixedColor": "text"},
            "custom.lineStyle": {"fill": "dash", "dash": [8, 8]},
        },
    )


def override_of(matcher: Json, properties: Json) -> Json:
    return {
        "matcher": matcher,
        "properties": [{"id": name, "value": value} for name, value in properties.items()],
    }


def for_series(name: str, **properties: Any) -> Json:
    """Properties of one series of a panel, by its legend."""
    return override_of({"id": "byName", "options": name}, properties)


def coloured(series: str, color: str) -> Json:
    """The series whose names match the pattern."""
    return override_of({"id": "byRegexp", "options": f"/{series}/"}, _fixed(color))


def _fixed(color: str) -> Json:
    return {"color": {"mode": "fixed", "fixedColor": color}}


BY_OUTCOME = [
    coloured(f"^({outcomes})$", color)
    for outcomes, color in (
        ("granted|released|ok", "green"),
        ("cancelled", "yellow"),
        ("timeout|full", "orange"),
        ("evicted|unconfirmed|draining", "purple"),
        ("busy", "blue"),
        ("error|lost|unavailable", "red"),
    )
]
"""One colour for each way to end, in every panel."""

NOTHING_HAPPENED = {
    "matcher": {"id": "byValue", "options": {"reducer": "allIsZero", "op": "gte", "value": 0}},
    "properties": [{"id": "custom.hideFrom", "value": {"legend": True, "tooltip": True, "viz": True}}],
}
"""Hides the series that are 0 all along: a healthy panel of faults is an empty one."""


_COLUMNS = {"align": "auto", "filterable": False, "minWidth": 50}  # 150 would leave half of them out


class Column(NamedTuple):
    """A column of a table: a number that is asked for by itself."""

    title: str
    expr: str
    unit: str
    thresholds: Json | None = None
    decimals: int | None = None
    width: int | None = None


def table(
    title: str,
    description: Says,
    key: str,
    key_title: str,
    columns: Sequence[Column],
    *,
    link: Json | None = None,
    sort_by: str = "",
    empty: str = "none",
) -> Json:
    """One line for each value of the label `key`; a cell has a colour only if it is bad."""
    refs = _refs()
    targets: list[Json] = []
    renamed = {key: key_title}
    overrides = []
    for column in columns:
        ref = next(refs)
        targets.append(prometheus_target(ref, Query(column.expr, now=True), "table"))
        renamed[f"Value #{ref}"] = column.title
        properties: Json = {"unit": column.unit, "noValue": ""}  # that of the table is for no lines
        if column.decimals is not None:
            properties["decimals"] = column.decimals
        if column.width is not None:
            properties["custom.width"] = column.width
        if column.thresholds is not None:
            properties["thresholds"] = column.thresholds
            properties["custom.cellOptions"] = {"type": "color-background", "mode": "basic"}
        overrides.append(override_of({"id": "byName", "options": column.title}, properties))
    if link is not None:
        overrides.append(override_of({"id": "byName", "options": key_title}, {"links": [link]}))
    order = {name: place for place, name in enumerate(renamed)}
    transformations: list[Json] = [
        {"id": "merge", "options": {}},
        {
            "id": "organize",
            "options": {
                "excludeByName": {"Time": True},
                "indexByName": order,
                "renameByName": renamed,
            },
        },
    ]
    defaults = {
        "unit": "none",
        "color": {"mode": "thresholds"},
        "thresholds": never_bad(),
        "noValue": empty,
        "custom": _COLUMNS,
    }
    return _panel(
        "table",
        title,
        description,
        targets,
        defaults,
        _table_options(sort_by),
        overrides=overrides,
        transformations=transformations,
    )


def label_table(
    title: str,
    description: Says,
    query: Query,
    labels: dict[str, str],
    *,
    value: str,
    unit: str,
    widths: dict[str, int],
    colours: tuple[str, dict[str, str]],
    link: tuple[str, Json] | None = None,
    empty: str = "none",
) -> Json:
    """The series that exist, one line each: their labels, whose titles `labels` gives, and their value.

    `colours` names a column, and its cells' colours by their text.
    """
    renamed = {**labels, "Value": value}
    transformations = [
        {
            "id": "organize",
            "options": {
                "excludeByName": {"Time": True},
                "indexByName": {name: place for place, name in enumerate(renamed)},
                "renameByName": renamed,
            },
        }
    ]
    # `empty` is for a table without lines; Grafana would write it into each empty cell, too.
    overrides = [override_of({"id": "byRegexp", "options": "/.*/"}, {"noValue": ""})]
    overrides.append(override_of({"id": "byName", "options": value}, {"unit": unit}))
    for title_of, width in widths.items():
        overrides.append(override_of({"id": "byName", "options": title_of}, {"custom.width": width}))
    column, colour_of = colours
    texts = {text: {"color": colour, "index": n} for n, (text, colour) in enumerate(colour_of.items())}
    cells: Json = {
        "mappings": [{"type": "value", "options": texts}],
        "custom.cellOptions": {"type": "color-background", "mode": "basic"},
    }
    overrides.append(override_of({"id": "byName", "options": column}, cells))
    if link is not None:
        overrides.append(override_of({"id": "byName", "options": link[0]}, {"links": [link[1]]}))
    defaults = {
        "unit": "string",
        "color": {"mode": "thresholds"},
        "thresholds": never_bad(),
        "noValue": empty,
        "custom": _COLUMNS,
    }
    return _panel(
        "table",
        title,
        description,
        [prometheus_target("A", query._replace(now=True), "table")],
        defaults,
        _table_options(""),
        overrides=overrides,
        transformations=transformations,
    )


def heatmap(title: str, description: Says, unit: str, query: Query) -> Json:
    """Buckets of a histogram over time; the darker, the more."""
    options = {
        "calculate": False,
        "color": {
            "mode": "scheme",
            "scheme": "Blues",
            "scale": "exponential",
            "exponent": 0.5,
            "steps": 64,
            "reverse": False,
            "fill": "dark-blue",
        },
        "cellGap": 1,
        "filterValues": {"le": 1e-9},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "yAxis": {"unit": unit, "reverse": False, "axisPlacement": "left"},
        "cellValues": {"unit": "short"},
        "legend": {"show": True},
        "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": False},
        "exemplars": {"color": "orange"},
    }
    targets = [prometheus_target("A", query, "heatmap")]
    return _panel("heatmap", title, description, targets, {"unit": unit}, options)


def log_lines(title: str, description: Says, expr: str, *, oldest_first: bool = False) -> Json:
    options = {
        "showLabels": False,
        "showCommonLabels": False,
        "showTime": True,
        "showLogContextToggle": False,
        "wrapLogMessage": True,
        "prettifyLogMessage": False,
        "enableLogDetails": True,
        "sortOrder": "Ascending" if oldest_first else "Descending",
        "dedupStrategy": "none",
    }
    target = {
        "refId": "A",
        "datasource": LOKI,
        "expr": expr,
        "queryType": "range",
        "maxLines": 1000,
    }
    return _panel("logs", title, description, [target], {"unit": "string"}, options, LOKI)


def log_stat(title: str, description: Says, unit: str, expr: str, *, empty: str) -> Json:
    """A number out of the log."""
    panel = stat(title, description, unit, [Query(expr, now=True)], empty=empty)
    target = {"refId": "A", "datasource": LOKI, "expr": expr, "queryType": "instant"}
    return {**panel, "datasource": LOKI, "targets": [target]}


def found_traces(title: str, description: Says, service: str, tags: str, links: Sequence[Json]) -> Json:
    """The traces that Jaeger finds by tag, one a line; a click on one offers the `links`."""
    target = {
        "refId": "A",
        "datasource": JAEGER,
        "queryType": "search",
        "service": service,
        "tags": tags,
        "limit": 20,
    }
    defaults = {
        "unit": "none",
        "noValue": "no trace bears this item_id in the time shown",
        "custom": {"align": "auto", "filterable": False},
    }
    overrides = [override_of({"id": "byName", "options": "Trace ID"}, {"links": list(links)})]
    return _panel(
        "table",
        title,
        description,
        [target],
        defaults,
        _table_options(""),
        JAEGER,
        overrides=overrides,
    )


def one_trace(title: str, description: Says, trace_id: str) -> Json:
    target = {"refId": "A", "datasource": JAEGER, "query": trace_id}
    return _panel("traces", title, description, [target], {"unit": "none"}, {}, JAEGER)


def heading(title: str) -> Json:
    return {"type": "row", "title": title, "collapsed": False, "panels": []}


def _panel(
    kind: str,
    title: str,
    description: Says,
    targets: Sequence[Json],
    defaults: Json,
    options: Json,
    datasource: Json = PROMETHEUS,
    *,
    overrides: Sequence[Json] = (),
    transformations: Sequence[Json] = (),
) -> Json:
    panel: Json = {
        "type": kind,
        "title": title,
        "description": str(description),
        "datasource": datasource,
        "targets": list(targets),
        "fieldConfig": {"defaults": defaults, "overrides": list(overrides)},
        "options": options,
    }
    if transformations:
        panel["transformations"] = list(transformations)
    return panel


def _table_options(sort_by: str) -> Json:
    options: Json = {"frameIndex": 0, "showHeader": True, "cellHeight": "sm"}
    if sort_by:
        options["sortBy"] = [{"displayName": sort_by, "desc": False}]
    return options


# Targets -------------------------------------------------------------------------------------------
def prometheus_targets(queries: Sequence[Query]) -> list[Json]:
    refs = _refs()
    return [prometheus_target(next(refs), query) for query in queries]


def prometheus_target(ref: str, query: Query, form: str = "time_series") -> Json:
    return {
        "refId": ref,
        "datasource": PROMETHEUS,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend,
        "format": form,
        "instant": query.now,
        "range": not query.now,
        "exemplar": query.exemplars,
    }


def _refs() -> Iterator[str]:
    return iter("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


# Variables -----------------------------------------------------------------------------------------
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
    """The values of a label; `of` narrows them by another variable. All is the pattern `all_is`, or
    the values that are listed."""
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


# A whole dashboard ---------------------------------------------------------------------------------
def to_dashboard(uid: str, title: str) -> Json:
    """A link in the head of a dashboard to another one, which keeps variables and time."""
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
    """Panels side by side: a height, and each with its width."""

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
    """A dashboard of `rows` from top to bottom; a text among them is a heading."""
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
