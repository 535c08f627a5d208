"""Tables: of numbers by a label, of series, and of traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dashboards.panels import (
    JAEGER,
    Description,
    Json,
    Query,
    make_panel,
    never_bad,
    override_of,
    prometheus_target,
    ref_ids,
    shown_as,
)

_COLUMNS = {"align": "auto", "filterable": False, "minWidth": 50}  # 150 would leave half of them out


class Column(NamedTuple):
    """A column of a table, with its own query."""

    title: str
    expr: str
    unit: str
    thresholds: Json | None = None
    decimals: int | None = None
    width: int | None = None
    words: dict[float, str] | None = None
    """Shown instead of those numbers."""


def table(
    title: str,
    description: Description,
    key: str,
    key_title: str,
    columns: Sequence[Column],
    *,
    link: Json | None = None,
    sort_by: str = "",
    empty: str = "none",
) -> Json:
    """One row per value of the label `key`; a cell has a colour only if it is bad."""
    refs = ref_ids()
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
        if column.words is not None:
            properties["mappings"] = [shown_as(column.words)]
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
    return make_panel(
        "table",
        title,
        description,
        targets,
        _defaults("none", empty),
        _table_options(sort_by),
        overrides=overrides,
        transformations=transformations,
    )


def label_table(
    title: str,
    description: Description,
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
    """One row per existing series: its labels, with the titles in `labels`, and its value.

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
    return make_panel(
        "table",
        title,
        description,
        [prometheus_target("A", query._replace(now=True), "table")],
        _defaults("string", empty),
        _table_options(""),
        overrides=overrides,
        transformations=transformations,
    )


def found_traces(
    title: str, description: Description, service: str, tags: str, links: Sequence[Json]
) -> Json:
    """The traces that Jaeger finds by tag, one per row; a click on a row offers the `links`."""
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
    return make_panel(
        "table",
        title,
        description,
        [target],
        defaults,
        _table_options(""),
        JAEGER,
        overrides=overrides,
    )


def _table_options(sort_by: str) -> Json:
    options: Json = {"frameIndex": 0, "showHeader": True, "cellHeight": "sm"}
    if sort_by:
        options["sortBy"] = [{"displayName": sort_by, "desc": False}]
    return options


def _defaults(unit: str, empty: str) -> Json:
    return {
        "unit": unit,
        "color": {"mode": "thresholds"},
        "thresholds": never_bad(),
        "noValue": empty,
        "custom": _COLUMNS,
    }
