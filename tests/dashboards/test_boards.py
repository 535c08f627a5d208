"""The committed dashboards: the rules of the linter, names, links, variables."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from dashboards.generate import as_text, dashboards
from genesis.observability.configure import _json
from tests.dashboards.boards import BOARDS, CALL, OVERVIEW, panel
from tests.dashboards.linter import violations
from tests.support.telemetry_names import DASHBOARDS, complaints, panel_expressions


def test_the_committed_files_are_what_the_generator_writes() -> None:
    """After a change in dashboards/, `python -m dashboards.generate` was run."""
    for path, board in dashboards().items():
        assert path.read_text(encoding="utf-8") == as_text(board), f"{path.name} is out of date"


@pytest.mark.parametrize("name", BOARDS)
def test_no_dashboard_breaks_a_rule(name: str) -> None:
    """Every rule of the linter holds for every dashboard."""
    assert violations(BOARDS[name]) == []


@pytest.mark.parametrize("name", BOARDS)
def test_every_name_and_label_in_a_panel_is_exposed(name: str) -> None:
    """Every metric, label and label value in a query is known to the code."""
    wrong = [(title, complaints(text)) for title, text in panel_expressions(BOARDS[name])]
    assert [(title, what) for title, what in wrong if what] == []


@pytest.mark.parametrize("name", BOARDS)
def test_grafana_knows_every_field_of_a_dashboard(name: str) -> None:
    """Grafana's own types for 11.6 read and write the files without loss or change."""
    plugins = pytest.importorskip(
        "grafana_foundation_sdk.cog.plugins", reason="Grafana's types need Python 3.11"
    )
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()
    board = json.loads(as_text(BOARDS[name]))
    again = json.loads(json.dumps(Dashboard.from_json(board), cls=JSONEncoder))
    assert lost(board, again) == []


def lost(ours: Any, theirs: Any, at: str = "") -> list[str]:
    """Where `theirs` lacks or changes something of `ours`; it may have more: the defaults."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            found
            for key in ours
            for found in (
                lost(ours[key], theirs[key], f"{at}/{key}") if key in theirs else [f"{at}/{key}"]
            )
        ]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [found for place, (a, b) in pairs for found in lost(a, b, f"{at}/{place}")]
    return [] if ours == theirs else [at]


def test_links_between_dashboards_lead_somewhere() -> None:
    """Every /d/... in a link of a head, a cell or a column is one of the dashboards."""
    for name, board in BOARDS.items():
        linked = set(re.findall(r"/d/([a-z-]+)", as_text(board)))
        assert linked <= set(BOARDS), name
        assert linked >= set(BOARDS) - {name}, name


def test_an_empty_cell_of_a_table_is_empty() -> None:
    """`noValue` of a table is for one without lines; Grafana writes it into each empty cell as well."""
    for board in BOARDS.values():
        for each in board["panels"]:
            if each["type"] == "table" and each.get("transformations"):
                config = each["fieldConfig"]
                assert config["defaults"]["noValue"], each["title"]
                blank = {
                    override["matcher"]["options"]
                    for override in config["overrides"]
                    if {"id": "noValue", "value": ""} in override["properties"]
                }
                *_, organize = each["transformations"]
                columns = {
                    title
                    for name, title in organize["options"]["renameByName"].items()
                    if name.startswith("Value #")
                }
                assert blank in (columns, {"/.*/"}), each["title"]


def test_the_list_of_alerts_has_the_columns_that_it_names() -> None:
    """No `__name__`, `alertstate` or `window` beside them, nor one line for each window."""
    alerts = panel(BOARDS[OVERVIEW], "Alerts that fire")
    (organize,) = alerts["transformations"]
    labels = ", ".join(name for name in organize["options"]["renameByName"] if name != "Value")
    assert f"max by ({labels}) (ALERTS{{" in alerts["targets"][0]["expr"]
    assert f"min by ({labels}) (ALERTS_FOR_STATE{{" in alerts["targets"][0]["expr"]


def test_a_link_in_a_cell_keeps_what_was_chosen() -> None:
    """Data source, job, instance, queue and time; what the cell bears is encoded, were it `&`."""
    for board in BOARDS.values():
        for url in re.findall(r'"url": "(/d/[^"]+\?[^"]+)"', as_text(board)):
            for name in ("datasource", "job", "instance", "queue"):
                assert f"${{{name}:queryparam}}" in url or f"var-{name}=" in url, url
            assert "${__url_time_range}" in url or "&time=" in url
            fields = re.findall(r"\$\{__data\.fields\.[^}]+\}", url)
            assert all(each.endswith(":percentencode}") for each in fields), url


@pytest.mark.parametrize("name", BOARDS)
def test_every_variable_that_is_used_is_declared(name: str) -> None:
    """Grafana asks for the name of a variable that it does not know, and finds nothing."""
    used = set(re.findall(r"\$\{?([a-z]\w+)", json.dumps(BOARDS[name]["panels"])))
    assert used <= {each["name"] for each in BOARDS[name]["templating"]["list"]}


def test_all_jobs_are_those_that_bear_our_metrics() -> None:
    """`up` is there for every job of a Prometheus, so that All as a pattern would count them all."""
    for board in BOARDS.values():
        (job,) = [each for each in board["templating"]["list"] if each["name"] == "job"]
        assert "allValue" not in job
        assert job["query"]["query"] == "label_values(genesis_build_info, job)"


def test_who_logged_a_call_is_who_wrote_the_line() -> None:
    """`reclaimed` bears the instance_id of the dead instance, so that cannot be what is counted."""
    (target,) = panel(BOARDS[CALL], "Instances that logged it")["targets"]
    assert "sum by (service_instance_id)" in target["expr"]


def test_a_call_is_found_in_the_log_by_any_id() -> None:
    """In a JSON line a letter beyond ASCII is escaped, so a filter of lines must not name the id."""
    line = _json({"event": "granted", "queue_id": "sales", "item_id": "Zo\u00eb"})
    provisioned = (DASHBOARDS / "grafana/provisioning/datasources/genesis.yaml").read_text()
    queries = [
        target.get("expr", "") for each in BOARDS[CALL]["panels"] for target in each.get("targets", ())
    ]
    filters = [re.findall(r'\|= "(.+?)" \| json', query) for query in (*queries, provisioned)]
    found = [text for texts in filters for text in texts]
    assert len(found) == 6
    assert [text for text in found if text not in line] == []
