"""The committed dashboards are what the generator writes, what Grafana reads, and what we demand."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dashboards import queries
from dashboards.generate import as_text, dashboards
from genesis.observability import names
from tests.dashboards.linter import violations
from tests.support.telemetry_names import complaints, filled_in, panel_expressions

BOARDS = {path.stem: board for path, board in dashboards().items()}
OVERVIEW, QUEUE, CALL = "genesis-overview", "genesis-queue", "genesis-call"

Board = dict[str, Any]


def panel(board: Board, title: str) -> Board:
    found: Board
    (found,) = [each for each in board["panels"] if each["title"] == title]
    return found


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
    """A metric, a label or a label's value that the code does not know is found here."""
    wrong = [(title, complaints(text)) for title, text in panel_expressions(BOARDS[name])]
    assert [(title, what) for title, what in wrong if what] == []


@pytest.mark.parametrize("name", BOARDS)
def test_grafana_knows_every_field_of_a_dashboard(name: str) -> None:
    """Read and written again by Grafana's own types for 11.6, nothing is lost or changed."""
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


# Panels whose numbers are easily wrong: what they give on series made up for them ------------------
def counted(name: str, values: str, **labels: str) -> Board:
    pairs = ", ".join(
        f'{key}="{value}"' for key, value in {"job": "pbx", "instance": "a", **labels}.items()
    )
    return {"series": f"{name}{{{pairs}}}", "values": values}


def in_turn() -> list[Board]:
    """Ten queues of one slot; in each a call of 5 minutes every 10, one queue after the other."""
    series = []
    for place in range(10):
        queue = f"q{place}"
        begun = [max(0, at - 4 * place + 40) // 40 for at in range(120)]
        ended = [max(0, at - 4 * place + 20) // 40 for at in range(120)]
        series += [
            counted(names.LIMIT, "1x120", queue=queue, backend="redis"),
            counted(f"{names.POSITION}_count", " ".join(map(str, begun)), queue=queue),
            counted(f"{names.HOLD_SECONDS}_count", " ".join(map(str, ended)), queue=queue),
            counted(f"{names.HOLD_SECONDS}_sum", " ".join(str(300 * n) for n in ended), queue=queue),
        ]
    return series


# Of ten callers six are answered in 20 s, one later; one hangs up at once, one after 10 s, and one is
# sent away after more than 20 s. The waits of the answered add up to 70 s.
TEN_CALLERS = [
    counted(f"{names.WAIT_SECONDS}_{sample}", f"0+{each}x120", queue="sales", **labels)
    for sample, each, labels in (
        ("count", 7, {"outcome": "granted"}),
        ("sum", 70, {"outcome": "granted"}),
        ("bucket", 6, {"outcome": "granted", "le": "20.0"}),
        ("bucket", 7, {"outcome": "granted", "le": "30.0"}),
        ("count", 2, {"outcome": "cancelled"}),
        ("bucket", 1, {"outcome": "cancelled", "le": "5.0"}),
        ("bucket", 2, {"outcome": "cancelled", "le": "20.0"}),
        ("count", 1, {"outcome": "timeout"}),
        ("bucket", 0, {"outcome": "timeout", "le": "5.0"}),
        ("bucket", 0, {"outcome": "timeout", "le": "20.0"}),
    )
]
# Four slots, one in use; five in the line, two of them of living instances. Seen by two instances.
A_LINE = [
    counted(name, f"{value}x120", queue="sales", instance=instance, **labels)
    for instance in ("a", "b")
    for name, value, labels in (
        (names.IN_USE, 1, {"backend": "redis"}),
        (names.LIMIT, 4, {"backend": "redis"}),
        (names.DEPTH, 5, {"backend": "redis"}),
        (names.OLDEST_WAIT, 9, {"backend": "redis"}),
        (names.WAITING, 1, {}),
    )
]
SALES = '{queue="sales"}'
ONE_UP = [counted("up", "1x120"), counted(names.BUILD_INFO, "1x120", version="1", backend="redis")]
FAILING = [
    counted(
        f"{names.OPERATION_SECONDS}_count",
        "0+3x120",
        backend="redis",
        operation="enter",
        outcome="unavailable",
    )
]


def held(oldest: int, mean: int) -> list[Board]:
    """A queue whose oldest hold, and whose mean of those that ended, have lasted so many seconds."""
    return [
        counted(names.OLDEST_HOLD, f"{oldest}x120", queue="sales", backend="redis"),
        counted(f"{names.HOLD_SECONDS}_count", "0+1x120", queue="sales", outcome="released"),
        counted(f"{names.HOLD_SECONDS}_sum", f"0+{mean}x120", queue="sales", outcome="released"),
    ]


ANSWERS: dict[str, tuple[str, list[Board], str, float]] = {
    "strict": (queries.service_level_strict(), TEN_CALLERS, SALES, 0.6),
    "lenient": (queries.service_level_lenient(), TEN_CALLERS, SALES, 0.75),
    "abandons": (f"9 * {queries.abandon_rate('')}", TEN_CALLERS, "{}", 2),
    "speed of answer": (queries.speed_of_answer(), TEN_CALLERS, SALES, 10),
    "callers a minute": (queries.per_minute(queries.ended("")), TEN_CALLERS, "{}", 40),
    "no callers, no ratio": (
        f"count({queries.service_level_strict()}) or vector(-1)",
        [counted(f"{names.WAIT_SECONDS}_count", "7x120", queue="sales", outcome="granted")],
        "{}",
        -1,
    ),
    "burn of an hour": (
        queries.service_level_burn(),
        [
            {
                "series": 'job_queue:genesis_service_level:ratio1h{job="pbx", queue="sales"}',
                "values": "0.5x120",
            }
        ],
        '{job="pbx", queue="sales"}',
        2.5,
    ),
    "occupancy": (queries.occupancy(), A_LINE, SALES, 0.25),
    "fullest queue, and callers wait": (queries.fullest(), A_LINE, "{}", 0.251),
    "the line": (queries.depth_everywhere(), A_LINE, "{}", 5),
    "the callers of the instances": (queries.waiting_everywhere(), A_LINE, "{}", 2),
    "an idle queue has its last limit, and no slot in use": (
        queries.occupancy(),
        [
            counted(names.LIMIT, "4x100 stale", queue="sales", backend="redis"),
            counted(names.HOLDING, "0x120", queue="sales"),
        ],
        SALES,
        0,
    ),
    "0 while an instance is there": (queries.or_zero(queries.longest_wait()), ONE_UP, "{}", 0),
    "nobody while an instance is there": (
        queries.or_nobody(queries.service_level_strict("", queries.RECENT)),
        ONE_UP,
        "{}",
        queries.NOBODY,
    ),
    "neither without one": (
        f"count({queries.or_zero(queries.longest_wait())}) or vector(-2)",
        [counted("up", "1x60 0x60"), *ONE_UP[1:]],
        "{}",
        -2,
    ),
    "nobody knows how long they have waited while Redis is away": (
        f"count({queries.or_zero_unless(queries.waiting(''), queries.longest_wait())}) or vector(-2)",
        [
            *ONE_UP,
            *FAILING,
            counted(names.WAITING, "3x120", queue="sales"),
        ],
        "{}",
        -2,
    ),
    "Redis is fine": (queries.backend_state(), ONE_UP, "{}", queries.BACKEND_FINE),
    "Redis fails": (queries.backend_state(), [*ONE_UP, *FAILING], "{}", queries.BACKEND_AWAY),
    "Redis was disrupted": (
        queries.backend_state(),
        [
            *ONE_UP,
            counted(names.DISRUPTIONS, "0x100 1x20", backend="redis", reason="connection"),
        ],
        "{}",
        queries.BACKEND_DISRUPTED,
    ),
    "a hold of twenty times the mean, and above a minute, is too long": (
        queries.too_long(),
        held(oldest=70, mean=3),
        SALES,
        70,
    ),
    "one of ten times the mean is not": (
        f"count({queries.too_long()}) or vector(-2)",
        held(oldest=70, mean=7),
        "{}",
        -2,
    ),
    "an hour is, whatever is usual": (queries.too_long(), held(oldest=3601, mean=3000), SALES, 3601),
    "waiting": (queries.waiting(), A_LINE, SALES, 2),
    "longest wait": (queries.longest_wait(), A_LINE, "{}", 9),
    "waiters though slots are free": (queries.stuck(), A_LINE, SALES, 5),
    "no free slot, none stuck": (
        f"count({queries.stuck()}) or vector(0)",
        [
            counted(name, "3x120", queue="sales", backend="redis")
            for name in (names.DEPTH, names.IN_USE, names.LIMIT)
        ],
        "{}",
        0,
    ),
    "callers who met an error are faults": (
        queries.faults_of_queues(),
        [counted(f"{names.WAIT_SECONDS}_count", "0x60 4x60", queue="sales", outcome="error")],
        SALES,
        4,
    ),
    "instances of other jobs are not ours": (
        queries.down_count(),
        [
            counted("up", "1x120"),
            counted(names.BUILD_INFO, "1x120", version="1", backend="redis"),
            counted("up", "0x120", job="node", instance="n"),
        ],
        "{}",
        0,
    ),
    "one of ours that is down is counted": (
        queries.down_count(),
        [
            counted("up", "1x60 0x60"),
            counted(names.BUILD_INFO, "1x60 stale", version="1", backend="redis"),
        ],
        "{}",
        1,
    ),
    "long calls in small queues: twice as many can be taken as come": (
        f"{queries.capacity()} / {queries.arriving('')}",
        in_turn(),
        "{}",
        2,
    ),
    "many queues under one label are not stuck": (
        f"count({queries.stuck()}) or vector(0)",
        [
            counted(names.DEPTH, "3x120", queue="_other", backend="redis"),
            counted(names.IN_USE, "90x120", queue="_other", backend="redis"),
            counted(names.LIMIT, "400x120", queue="_other", backend="redis"),
        ],
        "{}",
        0,
    ),
    "nobody answered is a service level of 0, also where no such series is": (
        queries.service_level_strict(""),
        [counted(f"{names.WAIT_SECONDS}_count", "0+1x120", queue="sales", outcome="timeout")],
        "{}",
        0,
    ),
    "nobody gave up is an abandon rate of 0, also where no such series is": (
        queries.abandon_rate(""),
        [counted(f"{names.WAIT_SECONDS}_count", "0+1x120", queue="sales", outcome="granted")],
        "{}",
        0,
    ),
    "faults of one kind count where the others have no series": (
        queries.faults_of_queues(),
        [
            counted(names.RECLAIMED, "0x60 5x60", queue="sales", state="waiting"),
            counted(f"{names.WAIT_SECONDS}_count", "0+1x120", queue="sales", outcome="granted"),
        ],
        '{queue="sales"}',
        5,
    ),
}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no `promtool` on this machine")
def test_panels_give_the_right_number(tmp_path: Path) -> None:
    """Evaluated by promtool, with all variables at All."""
    variables = {
        "job": ".+",
        "instance": ".+",
        "queue": ".+",
        "__rate_interval": "1m",
        "__range": "30m",
    }
    cases = [
        {
            "name": what,
            "interval": "15s",
            "input_series": series,
            "promql_expr_test": [
                {
                    "expr": f"round({filled_in(expression, variables)}, 0.001)",
                    "eval_time": "28m",
                    "exp_samples": [{"labels": labels, "value": value}],
                }
            ],
        }
        for what, (expression, series, labels, value) in ANSWERS.items()
    ]
    file = tmp_path / "answers.test.yml"
    file.write_text(json.dumps({"evaluation_interval": "15s", "tests": cases}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# The linter itself: every rule, on a violation that was planted -------------------------------------
def set_to(title: str, path: str, value: Any) -> Callable[[Board], None]:
    """Plants `value` at `path` of the panel."""

    def plant(board: Board) -> None:
        where: Any = panel(board, title)
        *steps, last = path.split(".")
        for step in steps:
            where = where[int(step)] if step.isdigit() else where[step]
        where[last] = value

    return plant


def replaced(title: str, old: str, new: str) -> Callable[[Board], None]:
    """Plants another text in the first query of the panel."""

    def plant(board: Board) -> None:
        target = panel(board, title)["targets"][0]
        assert old in target["expr"], target["expr"]
        target["expr"] = target["expr"].replace(old, new)

    return plant


def in_cell_link(title: str, old: str, new: str) -> Callable[[Board], None]:
    """Plants another text in the link of a table's key."""

    def plant(board: Board) -> None:
        (link,) = panel(board, title)["fieldConfig"]["overrides"][-1]["properties"][0]["value"]
        assert old in link["url"], link["url"]
        link["url"] = link["url"].replace(old, new)

    return plant


def of_variable(name: str, field: str, value: Any) -> Callable[[Board], None]:
    def plant(board: Board) -> None:
        (variable,) = [each for each in board["templating"]["list"] if each["name"] == name]
        variable[field] = value

    return plant


SLOTS = "Slots: in use, and how many there are"
DEMAND = "Demand: calls that come, and that the slots can take"
WAITING = "Callers waiting by queue"
WAITS = "Wait of those who were answered"

PLANTED: dict[str, tuple[str, Callable[[Board], None], str]] = {
    "a uid made up by Grafana": (OVERVIEW, lambda b: b.update(uid="aBc123"), "uid"),
    "no uid": (OVERVIEW, lambda b: b.update(uid=None), "uid"),
    "an old schema": (OVERVIEW, lambda b: b.update(schemaVersion=36), "schemaVersion"),
    "a schema of the future": (OVERVIEW, lambda b: b.update(schemaVersion=42), "schemaVersion"),
    "editable": (OVERVIEW, lambda b: b.update(editable=True), "editable"),
    "no description": (OVERVIEW, lambda b: b.update(description=""), "no description"),
    "a variable is missing": (
        OVERVIEW,
        lambda b: b["templating"]["list"].pop(1),
        "no variable $job",
    ),
    "a variable without label": (OVERVIEW, of_variable("job", "label", ""), "no label"),
    "a variable loaded once": (OVERVIEW, of_variable("queue", "refresh", 1), "time range"),
    "All without a pattern": (OVERVIEW, of_variable("queue", "allValue", ""), "endless list"),
    "a variable of nothing": (
        OVERVIEW,
        of_variable("job", "query", {"query": "label_values(genesis_info, job)"}),
        "nothing exposes it",
    ),
    "a link that forgets": (OVERVIEW, lambda b: b["links"][0].update(keepTime=False), "forgets"),
    "no link": (OVERVIEW, lambda b: b["links"].clear(), "links to no other"),
    "a link of a cell that forgets": (
        OVERVIEW,
        in_cell_link("Instances", "&${queue:queryparam}", ""),
        "forgets queue",
    ),
    "a link of a cell without time": (
        OVERVIEW,
        in_cell_link("Queues", "&${__url_time_range}", ""),
        "forgets the time",
    ),
    "a link that cuts a name off": (OVERVIEW, in_cell_link("Queues", ":percentencode", ""), "cuts"),
    "one id twice": (OVERVIEW, set_to(WAITING, "id", 2), "one id"),
    "too wide": (OVERVIEW, set_to("Faults", "gridPos.w", 9), "outside"),
    "on top of another": (OVERVIEW, set_to(SLOTS, "gridPos.x", 1), "overlap"),
    "a panel without title": (OVERVIEW, set_to(WAITING, "title", ""), "no title"),
    "a panel without unit": (OVERVIEW, set_to(WAITING, "fieldConfig.defaults.unit", ""), "no unit"),
    "a panel without description": (OVERVIEW, set_to(WAITING, "description", ""), "no description"),
    "a panel that does not help": (
        OVERVIEW,
        set_to(WAITING, "description", "Callers who wait."),
        "does not say when it is bad",
    ),
    "a fixed datasource": (
        OVERVIEW,
        set_to(WAITING, "datasource", {"type": "prometheus", "uid": "PBFA97CFB590B2093"}),
        "can be chosen",
    ),
    "a target with a fixed datasource": (
        OVERVIEW,
        set_to(WAITING, "targets.0.datasource", {"type": "prometheus", "uid": "main"}),
        "can be chosen",
    ),
    "no query": (OVERVIEW, lambda b: panel(b, WAITING)["targets"].clear(), "asks nothing"),
    "a fixed window": (OVERVIEW, replaced(DEMAND, "$__rate_interval", "7m"), "$__rate_interval"),
    "the whole range at each point": (
        OVERVIEW,
        replaced(DEMAND, "$__rate_interval", "$__range"),
        "$__rate_interval",
    ),
    "a short window for a number over all": (
        OVERVIEW,
        replaced("Gave up, last 5 min", "5m", "7m"),
        "other than",
    ),
    "a bare counter": (
        OVERVIEW,
        replaced(WAITING, "genesis_queue_waiting", "genesis_queue_reclaimed_total"),
        "since the process began",
    ),
    "a sum of what is shared": (
        OVERVIEW,
        replaced("Longest wait now", "max(", "sum("),
        "shared",
    ),
    "what is shared, not aggregated": (CALL, replaced("Longest wait", "max by (queue)", ""), "shared"),
    "a max of each one's own": (OVERVIEW, replaced(WAITING, "sum by", "max by"), "each one's"),
    "no filter by job": (OVERVIEW, replaced(WAITING, 'job=~"$job", ', ""), "$job"),
    "no filter by instance": (
        OVERVIEW,
        replaced(WAITING, 'instance=~"$instance", ', ""),
        "$instance",
    ),
    "no filter by queue": (OVERVIEW, replaced(WAITING, ', queue=~"$queue"', ""), "$queue"),
    "another queue": (OVERVIEW, replaced(WAITING, '"$queue"', '"sales"'), "$queue"),
    "quantiles without a way to a trace": (
        QUEUE,
        set_to(WAITS, "targets.0.exemplar", False),
        "without exemplars",
    ),
    "the logs of everybody": (
        CALL,
        replaced("Its log, on every instance", "service_name", "job"),
        "every service",
    ),
}


@pytest.mark.parametrize("what", PLANTED)
def test_the_linter_finds_what_was_planted(what: str) -> None:
    """A dashboard with one fault has a violation that names it, and had none before."""
    name, plant, word = PLANTED[what]
    board = copy.deepcopy(BOARDS[name])
    plant(board)
    found = violations(board)
    assert found
    assert all(word in each for each in found), found
