"""The linter of the dashboards finds planted faults."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.dashboards.boards import BOARDS, CALL, OVERVIEW, QUEUE, Board, panel
from tests.dashboards.linter import violations


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
    "an empty grid where there is no data": (
        OVERVIEW,
        set_to(WAITING, "fieldConfig.defaults.noValue", ""),
        "no data",
    ),
    "an empty grid where all is 0": (
        OVERVIEW,
        set_to(WAITING, "fieldConfig.defaults.custom.hideFrom", {"viz": True}),
        "hides series",
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
