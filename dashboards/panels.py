"""Grafana's panels as JSON, independent of queues.

Colours mark problems. A healthy number is plain text; orange: investigate; red: act now. Each outcome
has the same colour everywhere (`BY_OUTCOME`). Seconds are always shown as seconds: Grafana's own unit
switches between milliseconds, seconds and minutes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

Json: TypeAlias = dict[str, Any]


PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}
LOKI = {"type": "loki", "uid": "${loki}"}
JAEGER = {"type": "jaeger", "uid": "${jaeger}"}

PLAIN, LOOK, ACT = "transparent", "orange", "red"
SECONDS, MILLISECONDS, TIMES = "suffix:s", "suffix:ms", "suffix:x"
CLOCK = "dthms"  # 01:02:03, for durations of up to hours
NO_DATA = "no data"


class Query(NamedTuple):
    """One query to Prometheus, and the names of its series.

    `now` requests only the current value, or one value over the whole displayed time.
    """

    expr: str
    legend: str = ""
    now: bool = False
    exemplars: bool = False


class Description(NamedTuple):
    """The description of a panel: what it shows, when that is bad, and what to do."""

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
    """Red from 0 on; a missing value has the colour below that. Line charts have no missing value."""
    if not from_zero:
        return steps((ACT, None), (LOOK, act), (PLAIN, look))
    return steps((PLAIN, None), (ACT, 0), (LOOK, act), (PLAIN, look))


def any_is_bad(least: float = 1) -> Json:
    return steps((PLAIN, None), (ACT, least))


def any_needs_a_look(least: float = 1) -> Json:
    return steps((PLAIN, None), (LOOK, least))


def steps(*colours: tuple[str, float | None]) -> Json:
    """Each colour from its number on; the first one for lower numbers, and for a missing number."""
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in colours]}


# Panels --------------------------------------------------------------------------------------------
def stat(
    title: str,
    description: Description,
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
    """A current number; only its background shows a problem.

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
        mappings.append(shown_as(words))
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
    return make_panel("stat", title, description, targets, defaults, options, overrides=overrides)


def shown_as(words: dict[float, str]) -> Json:
    """A mapping of numbers to words."""
    texts = {f"{value:g}": {"text": text, "index": n} for n, (value, text) in enumerate(words.items())}
    return {"type": "value", "options": texts}


def lines(
    title: str,
    description: Description,
    unit: str,
    queries: Sequence[Query],
    *,
    thresholds: Json | None = None,
    bars: Literal["", "rates", "counts"] = "",
    most: float | None = None,
    empty: str,
    overrides: Sequence[Json] = (),
) -> Json:
    """Lines over time, or stacked bars of a minute or more; `empty` is the text shown without data.

    A bar of a rate stands before its time, one of a count (see `promql.happened`) after it.
    """
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
        "noValue": empty,
        "custom": custom,
    }
    if bars:
        custom["barAlignment"] = 1 if bars == "counts" else -1
    if most is not None:
        defaults["max"] = most
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    targets = prometheus_targets(queries)
    panel = make_panel(
        "timeseries", title, description, targets, defaults, options, overrides=overrides
    )
    return {**panel, "interval": "1m"} if bars else panel


def drawn_as_limit(series: str) -> Json:
    """A dashed line without a colour, for a limit."""
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


def heatmap(title: str, description: Description, unit: str, query: Query, *, empty: str) -> Json:
    """Buckets of a histogram over time; darker means more."""
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
    defaults = {"unit": unit, "noValue": empty}
    return make_panel("heatmap", title, description, targets, defaults, options)


def log_lines(
    title: str, description: Description, expr: str, *, empty: str, oldest_first: bool = False
) -> Json:
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
    defaults = {"unit": "string", "noValue": empty}
    return make_panel("logs", title, description, [target], defaults, options, LOKI)


def log_stat(title: str, description: Description, unit: str, expr: str, *, empty: str) -> Json:
    """A number from the log."""
    panel = stat(title, description, unit, [Query(expr, now=True)], empty=empty)
    target = {"refId": "A", "datasource": LOKI, "expr": expr, "queryType": "instant"}
    return {**panel, "datasource": LOKI, "targets": [target]}


def one_trace(title: str, description: Description, trace_id: str) -> Json:
    target = {"refId": "A", "datasource": JAEGER, "query": trace_id}
    defaults = {"unit": "none", "noValue": "choose a trace above"}
    return make_panel("traces", title, description, [target], defaults, {}, JAEGER)


def make_panel(
    kind: str,
    title: str,
    description: Description,
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


# Targets -------------------------------------------------------------------------------------------
def prometheus_targets(queries: Sequence[Query]) -> list[Json]:
    refs = ref_ids()
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


def ref_ids() -> Iterator[str]:
    return iter("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
