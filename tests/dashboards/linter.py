"""The rules for our dashboards and their queries; `violations` checks them.

Expressions are read by a real PromQL parser, with a telling duration in the place of each of Grafana's
windows, so that a rule sees which window was written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import combinations
from typing import Any, NamedTuple

import promql_parser

from genesis.observability import names
from tests.support.telemetry_names import GRAFANA_DEFAULTS, complaints, filled_in, panels, sample_names

__all__ = ["RULES", "violations"]

Dashboard = dict[str, Any]
Rule = Callable[[Dashboard], Iterator[str]]

COLUMNS = 24
VARIABLES = ("datasource", "job", "instance", "queue")
SHARED = {
    names.DEPTH,
    names.IN_USE,
    names.LIMIT,
    names.OLDEST_WAIT,
    names.OLDEST_HOLD,
    names.EXPECTED_WAIT,
}
OF_A_PROCESS = {names.WAITING, names.HOLDING}

STEP, SHOWN = timedelta(seconds=7001), timedelta(seconds=7002)
RECENT, KNOWN = timedelta(minutes=5), timedelta(minutes=10)
_FILLING = {
    **{name: f"${name}" for name in GRAFANA_DEFAULTS},  # matchers stay as they are written
    "__rate_interval": "7001s",
    "__interval": "7003s",
    "__range": "7002s",
}


def violations(dashboard: Dashboard) -> list[str]:
    """All violations in a dashboard."""
    return [found for rule in RULES for found in rule(dashboard)]


# The dashboard -------------------------------------------------------------------------------------
def is_stable(dashboard: Dashboard) -> Iterator[str]:
    if not re.fullmatch(r"genesis-[a-z]+", dashboard.get("uid") or ""):
        yield f"the uid {dashboard.get('uid')!r} is not a fixed `genesis-...`"
    if not 39 <= dashboard.get("schemaVersion", 0) <= 41:
        yield f"schemaVersion is {dashboard.get('schemaVersion')}, not 39 to 41"
    if dashboard.get("editable") is not False:
        yield "it is editable: changes made in Grafana would be lost"
    if not dashboard.get("title") or not dashboard.get("description"):
        yield "it has no title, or no description"


def has_variables(dashboard: Dashboard) -> Iterator[str]:
    declared = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    for name in VARIABLES:
        if name not in declared:
            yield f"there is no variable ${name}"
    for name, variable in declared.items():
        if not variable.get("label"):
            yield f"the variable ${name} has no label"
        if variable["type"] == "query" and variable.get("refresh") != 2:
            yield f"the variable ${name} does not follow the time range"
        # All jobs are listed: few, and a pattern would take in every job of a Prometheus for `up`.
        if variable.get("includeAll") and not variable.get("allValue") and name != "job":
            yield f"All of ${name} is an endless list instead of a pattern"


def variables_list_what_exists(dashboard: Dashboard) -> Iterator[str]:
    for variable in dashboard["templating"]["list"]:
        asked = re.fullmatch(r"label_values\((.+), \w+\)", _query_of(variable))
        if variable["type"] == "query" and variable["datasource"]["type"] == "prometheus":
            wrong = complaints(asked[1]) if asked else [f"{variable['query']} lists no label"]
            yield from (f"the variable ${variable['name']}: {each}" for each in wrong)


def _query_of(variable: dict[str, Any]) -> str:
    query = variable["query"]
    return str(query.get("query", "")) if isinstance(query, dict) else str(query)


def links_keep_what_was_chosen(dashboard: Dashboard) -> Iterator[str]:
    if not dashboard.get("links"):
        yield "it links to no other dashboard"
    for link in dashboard.get("links", []):
        if not link.get("includeVars") or not link.get("keepTime"):
            yield f"the link {link.get('title')!r} forgets variables or time"


def cell_links_keep_what_was_chosen(dashboard: Dashboard) -> Iterator[str]:
    for url in re.findall(r"'url': '(/d/[^']+\?[^']+)'", str(dashboard["panels"])):
        kept = {*re.findall(r"\$\{(\w+):queryparam\}", url), *re.findall(r"var-(\w+)=", url)}
        missing = set(VARIABLES) - kept
        if missing or not ("${__url_time_range}" in url or "&time=" in url):
            yield f"the link {url!r} forgets {', '.join(missing) or 'the time'}"
        if re.search(r"__data\.fields\.\w+}", url):
            yield f"the link {url!r} cuts a value off at & or #"


def is_laid_out(dashboard: Dashboard) -> Iterator[str]:
    ids = [panel["id"] for panel in panels(dashboard)]
    if len(set(ids)) != len(ids):
        yield "two panels have one id"
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        if at["x"] < 0 or at["w"] < 1 or at["h"] < 1 or at["x"] + at["w"] > COLUMNS:
            yield f"{panel['title']!r} stands outside the {COLUMNS} columns"
    for one, other in combinations(dashboard["panels"], 2):
        a, b = one["gridPos"], other["gridPos"]
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        if not beside and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]:
            yield f"{one['title']!r} and {other['title']!r} overlap"


# Its panels ----------------------------------------------------------------------------------------
def _drawn(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    return (panel for panel in panels(dashboard) if panel["type"] != "row")


def tells_its_reader(dashboard: Dashboard) -> Iterator[str]:
    for panel in _drawn(dashboard):
        title = panel.get("title")
        if not title:
            yield f"panel {panel['id']} has no title"
        if not panel.get("fieldConfig", {}).get("defaults", {}).get("unit"):
            yield f"{title!r} has no unit"
        text = panel.get("description") or ""
        if not text:
            yield f"{title!r} has no description"
        elif not ("**Bad:** " in text and "**Next:** " in text):
            yield f"{title!r} does not say when it is bad, or what to do then"


def says_what_no_data_means(dashboard: Dashboard) -> Iterator[str]:
    """And has no series that are there and not shown: an empty grid says nothing."""
    for panel in _drawn(dashboard):
        config = panel["fieldConfig"]
        if not config["defaults"].get("noValue"):
            yield f"{panel['title']!r} does not say what it means if there is no data"
        if "hideFrom" in str(config):
            yield f"{panel['title']!r} hides series instead of not asking for them"


def asks_a_chosen_datasource(dashboard: Dashboard) -> Iterator[str]:
    chosen = {
        "${" + variable["name"] + "}"
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "datasource"
    }
    for panel in _drawn(dashboard):
        if not panel.get("targets"):
            yield f"{panel['title']!r} asks nothing"
        for asked in (panel, *panel.get("targets", [])):
            if (asked.get("datasource") or {}).get("uid") not in chosen:
                yield f"{panel['title']!r} does not ask a datasource that can be chosen"


# Its queries ---------------------------------------------------------------------------------------
class Asked(NamedTuple):
    """A metric in an expression, and what stands around it, the nearest first."""

    metric: str
    matchers: dict[str, str]
    window: timedelta | None
    functions: tuple[str, ...]
    aggregations: tuple[str, ...]


class Target(NamedTuple):
    title: str
    now: bool
    exemplars: bool
    asked: list[Asked]


def _targets(dashboard: Dashboard) -> Iterator[Target]:
    for panel in _drawn(dashboard):
        for target in panel.get("targets", []):
            if target.get("datasource", {}).get("type") != "prometheus":
                continue
            tree = promql_parser.parse(filled_in(target["expr"], _FILLING))
            exemplars = bool(target.get("exemplar"))
            asked = list(_asked(tree, None, (), ()))
            yield Target(panel["title"], bool(target.get("instant")), exemplars, asked)


def _asked(
    node: Any, window: timedelta | None, functions: tuple[str, ...], aggregations: tuple[str, ...]
) -> Iterator[Asked]:
    if isinstance(node, promql_parser.VectorSelector):
        matchers = {matcher.name: matcher.value for matcher in node.matchers.matchers}
        yield Asked(node.name or "", matchers, window, functions, aggregations)
    elif isinstance(node, promql_parser.MatrixSelector):
        yield from _asked(node.vector_selector, node.range, functions, aggregations)
    elif isinstance(node, promql_parser.AggregateExpr):
        operation = str(node.op).split(".")[-1].lower()
        yield from _asked(node.expr, window, functions, (operation, *aggregations))
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from _asked(argument, window, (node.func.name, *functions), aggregations)
    elif isinstance(node, promql_parser.SubqueryExpr):
        yield from _asked(node.expr, node.range, functions, aggregations)
    else:
        for part in ("lhs", "rhs", "expr"):
            if (inner := getattr(node, part, None)) is not None:
                yield from _asked(inner, window, functions, aggregations)


def windows_fit(dashboard: Dashboard) -> Iterator[str]:
    """A short fixed window is empty when scrapes are rarer; a long one hides spikes in a line.

    Ten minutes are for what hardly changes: a limit, and the mean length of calls.
    """
    for target in _targets(dashboard):
        allowed = {None, STEP, KNOWN, *((SHOWN, RECENT) if target.now else ())}
        for asked in target.asked:
            slow = asked.metric == names.LIMIT or asked.metric.startswith(names.HOLD_SECONDS)
            if asked.window not in allowed or (asked.window == KNOWN and not slow):
                wanted = "$__range and 5m" if target.now else "$__rate_interval"
                if asked.metric != names.BUILD_INFO or asked.window != SHOWN:
                    yield f"{target.title!r} looks at {asked.metric} over a window other than {wanted}"


def counters_are_rates(dashboard: Dashboard) -> Iterator[str]:
    for target in _targets(dashboard):
        for asked in target.asked:
            if not asked.metric.endswith(("_total", "_bucket", "_count", "_sum")):
                continue
            if not {"rate", "increase"} & set(asked.functions):
                yield f"{target.title!r} shows the counter {asked.metric} since the process began"


def gauges_are_added_up_rightly(dashboard: Dashboard) -> Iterator[str]:
    for target in _targets(dashboard):
        for asked in target.asked:
            nearest = asked.aggregations[0] if asked.aggregations else "none"
            if asked.metric in SHARED and nearest != "max":
                yield f"{target.title!r} takes the {nearest} of {asked.metric}, which is shared: max"
            if asked.metric in OF_A_PROCESS and nearest != "sum":
                yield f"{target.title!r} takes the {nearest} of {asked.metric}, each one's own: sum"


def follows_the_variables(dashboard: Dashboard) -> Iterator[str]:
    """`instance=~".+"` says that all are meant, whichever are chosen; nothing at all says nothing."""
    labels = sample_names()
    for target in _targets(dashboard):
        for asked in target.asked:
            for label in _wanted_labels(asked.metric, labels.get(asked.metric, frozenset())):
                everyone = label == "instance" and asked.matchers.get(label) == ".+"
                if asked.matchers.get(label) != f"${label}" and not everyone:
                    yield f"{target.title!r} does not narrow {asked.metric} by ${label}"


def _wanted_labels(metric: str, own: frozenset[str]) -> list[str]:
    level, _, rest = metric.partition(":")
    if rest:  # a recording rule, whose name begins with the labels that it kept
        return [label for label in ("job", "queue") if label in level.split("_")]
    if metric.startswith("ALERTS"):
        return ["job"]
    return ["job", "instance", *(["queue"] if "queue" in own else [])]


def waits_lead_to_traces(dashboard: Dashboard) -> Iterator[str]:
    for target in _targets(dashboard):
        for asked in target.asked:
            of_wait = asked.metric == f"{names.WAIT_SECONDS}_bucket"
            if of_wait and "histogram_quantile" in asked.functions and not target.exemplars:
                yield f"{target.title!r} shows quantiles of waits without exemplars"


def logs_follow_the_service(dashboard: Dashboard) -> Iterator[str]:
    for panel in _drawn(dashboard):
        for target in panel.get("targets", []):
            if target.get("datasource", {}).get("type") != "loki":
                continue
            if '{service_name=~"$service"}' not in target["expr"]:
                yield f"{panel['title']!r} reads the logs of every service"


RULES: tuple[Rule, ...] = (
    is_stable,
    has_variables,
    variables_list_what_exists,
    links_keep_what_was_chosen,
    cell_links_keep_what_was_chosen,
    is_laid_out,
    tells_its_reader,
    says_what_no_data_means,
    asks_a_chosen_datasource,
    windows_fit,
    counters_are_rates,
    gauges_are_added_up_rightly,
    follows_the_variables,
    waits_lead_to_traces,
    logs_follow_the_service,
)
