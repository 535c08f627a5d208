"""Checks telemetry names in rules, alerts, runbooks, panels and README against what is exposed.

The names and the values of closed labels come from `genesis/observability/names.py` and from the
buckets of `metrics.py`. Only this module reads the files under `dashboards/`. Expressions are parsed by
a real PromQL parser. `complaints` is the check.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

import promql_parser
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.utils import floatToGoString

from genesis.observability import metrics, names
from genesis.observability.histogram import FastHistogram
from genesis.observability.metrics import instruments_of
from genesis.observability.shared import GAUGES

__all__ = [
    "DASHBOARDS",
    "GRAFANA_DEFAULTS",
    "REPOSITORY",
    "RULE_FILES",
    "RUNBOOKS",
    "Rule",
    "Selector",
    "complaints",
    "filled_in",
    "label_sets",
    "load_dashboards",
    "load_rules",
    "panel_expressions",
    "panels",
    "promql_blocks",
    "recorded_names",
    "sample_names",
    "selectors",
    "words",
]

REPOSITORY = Path(__file__).resolve().parents[2]
DASHBOARDS = REPOSITORY / "dashboards"
RULE_FILES = tuple(sorted((DASHBOARDS / "prometheus").glob("*.rules.yml")))
RUNBOOKS = DASHBOARDS / "runbooks"

# What a scrape adds, and what is there without this library.
SCRAPED = frozenset({"job", "instance"})
FOREIGN = {
    "up": SCRAPED,
    "process_start_time_seconds": SCRAPED,
    "ALERTS": frozenset({"alertname", "alertstate", "severity", "queue"}),
    "ALERTS_FOR_STATE": frozenset({"alertname", "severity", "queue"}),
}
GRAFANA_DEFAULTS = {
    "job": "genesis",
    "instance": ".*",
    "queue": ".*",
    "backend": ".*",
    "__rate_interval": "5m",
    "__interval": "1m",
    "__range": "1h",
    "datasource": "prometheus",
}


class Rule(NamedTuple):
    """A recording or an alert rule, as its file has it."""

    file: Path
    group: str
    name: str
    is_alert: bool
    expression: str
    lasting: str
    """The alert's `for`; "0s" if it has none."""
    labels: dict[str, str]
    annotations: dict[str, str]


class Selector(NamedTuple):
    """A metric as an expression asks for it: its name and its `(label, operator, value)`."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]


@cache
def load_rules() -> tuple[Rule, ...]:
    found = []
    for file in RULE_FILES:
        for group in yaml.safe_load(file.read_text())["groups"]:
            for rule in group["rules"]:
                found.append(
                    Rule(
                        file,
                        group["name"],
                        rule.get("alert") or rule["record"],
                        "alert" in rule,
                        rule["expr"],
                        str(rule.get("for", "0s")),
                        rule.get("labels", {}),
                        rule.get("annotations", {}),
                    )
                )
    return tuple(found)


@cache
def recorded_names() -> frozenset[str]:
    """The metrics that the recording rules make."""
    return frozenset(rule.name for rule in load_rules() if not rule.is_alert)


def load_dashboards() -> dict[str, dict[str, Any]]:
    """Grafana's dashboards, by the path under `dashboards/`."""
    found = {}
    for file in sorted(DASHBOARDS.rglob("*.json")):
        content = json.loads(file.read_text())
        if isinstance(content, dict) and "panels" in content:
            found[str(file.relative_to(DASHBOARDS))] = content
    return found


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All panels, those inside collapsed rows, too."""
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def panel_expressions(dashboard: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every PromQL expression of a dashboard, with the title of its panel."""
    for panel in panels(dashboard):
        for target in panel.get("targets", []):
            kind = (target.get("datasource") or panel.get("datasource") or {}).get("type", "prometheus")
            if target.get("expr") and kind == "prometheus":
                yield panel["title"], target["expr"]
    for annotation in dashboard.get("annotations", {}).get("list", []):
        if annotation.get("expr"):
            yield f"annotation {annotation['name']}", annotation["expr"]


def filled_in(expression: str, values: Mapping[str, str] = GRAFANA_DEFAULTS) -> str:
    """The expression with Grafana's variables replaced: `$queue`, `${queue}`, `${queue:regex}`."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1) or match.group(2)
        if name not in values:
            raise KeyError(f"{expression}: no value for the variable {name}")
        return values[name]

    return re.sub(r"\$(?:(\w+)|\{(\w+)(?::\w+)?\})", value, expression)


def selectors(expression: str) -> list[Selector]:
    """Every metric that a PromQL expression asks for. Raises ValueError if it is none."""
    return list(_selectors(promql_parser.parse(expression)))


_OPERATORS = {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}


def _selectors(node: Any) -> Iterator[Selector]:
    if isinstance(node, promql_parser.VectorSelector):
        matchers = tuple(
            (matcher.name, _OPERATORS[str(matcher.op).split(".")[-1]], matcher.value)
            for matcher in node.matchers.matchers
        )
        yield Selector(node.name or "", matchers)
        return
    for part in ("lhs", "rhs", "expr", "args", "vector_selector", "param"):
        inner = getattr(node, part, None)
        for one in inner if isinstance(inner, list) else [inner]:
            if one is not None:
                yield from _selectors(one)


def sample_names() -> dict[str, frozenset[str]]:
    """Every sample that the library's instruments can expose, with its own labels."""
    registry = CollectorRegistry()
    instruments = instruments_of(registry, metrics.WAIT_BUCKETS, lambda: 0.0)
    found = {}
    for instrument in instruments._families:
        (family,) = instrument.collect()
        name, labels = family.name, frozenset(instrument.labelnames)
        if isinstance(instrument, FastHistogram):
            found[f"{name}_bucket"] = labels | {"le"}
            found[f"{name}_count"] = found[f"{name}_sum"] = labels
        else:
            found[f"{name}_total" if family.type == "counter" else name] = labels
    for name, _, labelnames in GAUGES:
        found[name] = frozenset(labelnames)
    return found


def label_sets(sample: str) -> dict[str, set[str]]:
    """The closed labels of a sample: every value that they can have."""
    metric = re.sub(r"_(bucket|count|sum)$", "", sample)
    outcomes = {
        names.WAIT_SECONDS: names.WaitOutcome,
        names.HOLD_SECONDS: names.HoldOutcome,
        names.OPERATION_SECONDS: names.OperationOutcome,
    }
    bounds = {
        names.WAIT_SECONDS: metrics.WAIT_BUCKETS,
        names.HOLD_SECONDS: metrics.WAIT_BUCKETS,
        names.POSITION: metrics.POSITION_BUCKETS,
        names.OPERATION_SECONDS: metrics.OPERATION_BUCKETS,
    }
    closed: dict[str, set[str]] = {
        "operation": {*get_args(names.Operation), names.HEARTBEAT},
        "state": {"waiting", "holding"},
        "sink": set(get_args(names.Sink)),
        "backend": {"memory", "redis"},
    }
    if metric in outcomes:
        closed["outcome"] = set(get_args(outcomes[metric]))
    if metric in bounds:
        closed["le"] = {*map(floatToGoString, bounds[metric]), "+Inf"}
    reasons: Any = names.RefusalReason if metric == names.REFUSED else names.DisruptionReason
    closed["reason"] = set(get_args(reasons))
    return closed


def complaints(expression: str, exposed: Mapping[str, frozenset[str]] | None = None) -> list[str]:
    """What is wrong with the names in a PromQL expression; empty if nothing is.

    Args:
        expression: PromQL, perhaps with Grafana's variables.
        exposed: samples and their labels; by default all that the library can expose.
    """
    found: list[str] = []
    exposed = sample_names() if exposed is None else exposed
    recorded = recorded_names()
    for selector in selectors(filled_in(expression)):
        name = selector.name
        if name in recorded:
            continue
        labels = FOREIGN.get(name) or exposed.get(name)
        if labels is None:
            found.append(f"{name or selector.matchers}: nothing exposes it")
            continue
        closed = label_sets(name)
        for label, operator, value in selector.matchers:
            if label not in labels | SCRAPED:
                found.append(f"{name}: it has no label {label}")
            elif label in closed and "$" not in value and value not in ("", ".*", ".+"):
                values = value.split("|") if "~" in operator else [value]
                for one in values:
                    if one not in closed[label]:
                        found.append(f"{name}: {label} is never {one!r}")
    return found


def promql_blocks(text: str) -> list[str]:
    """The expressions in a Markdown page: each fenced block marked `promql`."""
    return [block.strip() for block in re.findall(r"```promql\n(.*?)```", text, re.DOTALL)]


def words(text: str) -> set[str]:
    """Everything in a text that looks like a metric of this library, recorded ones included."""
    return set(re.findall(r"\b(?:[a-z_]+:)?genesis_[a-z_]+(?::[a-z0-9_]+)?\b", text))
