"""Rules, alerts and runbooks: accepted by promtool, consistent with the exposed names, complete."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from genesis import BackendUnavailableError, EvictedError, Queue, QueueTimeoutError
from genesis.backends.estimate import FEWEST_HOLDS
from genesis.observability import Telemetry, names
from genesis.queue import RedisBackend
from tests.support.redis_server import RedisServer
from tests.support.sick import sick_logger
from tests.support.telemetry_names import (
    DASHBOARDS,
    REPOSITORY,
    RULE_FILES,
    RUNBOOKS,
    Rule,
    complaints,
    filled_in,
    load_dashboards,
    load_rules,
    panel_expressions,
    promql_blocks,
    recorded_names,
    sample_names,
    selectors,
    words,
)
from tests.support.waiting import wait_until

ALERTS = [rule for rule in load_rules() if rule.is_alert]
PROMTOOL_TESTS = sorted((Path(__file__).parent / "promtool").glob("*.test.yml"))
LONG = {"quiet_night.test.yml"}
TITLES = {
    dashboard["title"].removeprefix("Genesis / "): {
        title
        for panel in dashboard["panels"]
        for title in (
            panel["title"],
            *(
                title
                for step in panel.get("transformations", [])
                for title in step["options"].get("renameByName", {}).values()
            ),
        )
    }
    for dashboard in load_dashboards().values()
}
"""By dashboard: its panels, and the columns of its tables."""

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="no `promtool` on this machine (Debian: apt-get install prometheus)",
)


def run_promtool(*arguments: object) -> None:
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_would_load_the_rules() -> None:
    """`promtool check rules` accepts every file."""
    assert RULE_FILES
    run_promtool("check", "rules", *RULE_FILES)


@needs_promtool
@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, marks=[pytest.mark.slow] if file.name in LONG else [])
        for file in PROMTOOL_TESTS
    ],
    ids=lambda file: file.name.split(".")[0],
)
def test_the_alerts_fire_and_stay_silent_as_promised(file: Path) -> None:
    """`promtool test rules` passes."""
    run_promtool("test", "rules", file)


def test_every_alert_is_unit_tested_in_both_directions() -> None:
    """Each alert, and each severity of it, has a case in which it fires, and one in which not."""
    fires: set[tuple[str, str]] = set()
    silent: set[str] = set()
    for file in PROMTOOL_TESTS:
        for case in yaml.safe_load(file.read_text())["tests"]:
            for check in case.get("alert_rule_test", []):
                for alert in check["exp_alerts"]:
                    fires.add((check["alertname"], alert["exp_labels"]["severity"]))
                if not check["exp_alerts"]:
                    silent.add(check["alertname"])
    assert fires == {(rule.name, rule.labels["severity"]) for rule in ALERTS}
    assert silent == {rule.name for rule in ALERTS}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule.name}-{rule.labels['severity']}")
def test_an_alert_says_what_it_means_and_where_to_look(rule: Rule) -> None:
    """It has a severity, a summary, a description, and a runbook and a dashboard that exist."""
    assert rule.labels["severity"] in {"critical", "warning", "info"}
    assert rule.annotations["summary"].strip()
    assert rule.annotations["description"].strip()
    runbook = REPOSITORY / rule.annotations["runbook_url"]
    assert runbook == RUNBOOKS / f"{rule.name}.md"
    assert runbook.is_file()
    uids = {dashboard["uid"] for dashboard in load_dashboards().values()}
    linked = re.match(r"/d/([\w-]+)\?", rule.annotations["dashboard_url"])
    assert linked is not None
    if uids:
        assert linked.group(1) in uids


def test_every_runbook_is_an_alert_s_and_has_its_three_parts() -> None:
    """One page an alert: what it means, three first looks with expressions to paste, the cure."""
    pages = sorted(RUNBOOKS.glob("*.md"))
    assert {page.stem for page in pages} == {rule.name for rule in ALERTS}
    for page in pages:
        text = page.read_text()
        assert text.startswith(f"# {page.stem}\n"), page.name
        parts = re.findall(r"^## (.*)$", text, re.MULTILINE)
        assert parts == ["Meaning", "First three looks", "Cure"], page.name
        looks = text.split("## First three looks")[1].split("## Cure")[0]
        assert re.findall(r"^(\d)\. ", looks, re.MULTILINE) == ["1", "2", "3"], page.name
        assert promql_blocks(text), page.name


def test_every_runbook_says_where_a_dashboard_shows_it() -> None:
    """Its meaning names a dashboard, and a panel or a column there by its title."""
    for page in sorted(RUNBOOKS.glob("*.md")):
        meaning = page.read_text().split("## First three looks")[0].replace("\n", " ")
        sentences = re.findall(r"On \*.*?\.(?:$| )", meaning)
        assert sentences, page.name
        for sentence in sentences:
            named = set(re.findall(r'"([^"]+)"', sentence))
            for board in re.findall(r"\*(Overview|Queue)\*", sentence):
                assert named & TITLES[board], (page.name, sentence)


def test_the_index_of_the_alerts_is_complete() -> None:
    """The table in the README of the rules has each alert, with its severities."""
    text = (DASHBOARDS / "prometheus" / "README.md").read_text()
    rows = dict(re.findall(r"^\| \[(\w+)\]\(.*?\) \| ([\w, ]+) \|", text, re.MULTILINE))
    severities: dict[str, set[str]] = {}
    for rule in ALERTS:
        severities.setdefault(rule.name, set()).add(rule.labels["severity"])
    assert {name: set(row.split(", ")) for name, row in rows.items()} == severities


# The names --------------------------------------------------------------------------------------------
def pages() -> Iterator[tuple[str, str]]:
    yield "README.md", (REPOSITORY / "README.md").read_text()
    for page in sorted(DASHBOARDS.rglob("*.md")):
        yield str(page.relative_to(REPOSITORY)), page.read_text()


def expressions() -> Iterator[tuple[str, str]]:
    """Every PromQL expression of the repository, and where it stands."""
    for rule in load_rules():
        yield f"{rule.file.name}: {rule.name}", rule.expression
    for path, dashboard in load_dashboards().items():
        for title, expression in panel_expressions(dashboard):
            yield f"{path}: {title}", expression
    for place, text in pages():
        for block in promql_blocks(text):
            yield place, block


def test_every_expression_asks_for_what_can_be_exposed() -> None:
    """A misspelt metric, label or label value gives no data and no error; here it gives an error."""
    wrong = [f"{where}: {what}" for where, e in expressions() for what in complaints(e)]
    assert not wrong, "\n".join(wrong)


def test_every_page_speaks_of_metrics_that_exist() -> None:
    """So do the words of README and runbooks outside their expressions."""
    samples = set(sample_names())
    known = samples | recorded_names()
    known |= {re.sub(r"_(bucket|count|sum)$", "", name) for name in samples}
    for place, text in pages():
        assert not words(text) - known, place


def test_a_misspelt_name_is_found() -> None:
    """The checker itself: a metric, a label, an outcome, a bucket and an unparsable expression."""
    assert complaints('sum(rate(genesis_queue_wait_seconds_count{outcome="granted"}[5m]))') == []
    assert complaints("sum(genesis_queue_waitng)")
    assert complaints("genesis_queue_depth{outcome='granted'}")
    assert complaints('genesis_queue_wait_seconds_count{outcome=~"granted|abandoned"}')
    assert complaints('genesis_queue_hold_seconds_count{outcome="timeout"}')
    assert complaints('genesis_queue_wait_seconds_bucket{le="20"}')
    assert complaints('genesis_backend_operation_seconds_count{operation="acquire"}')
    assert complaints('genesis_backend_disruptions_total{reason="conection"}')
    assert complaints("genesis_queue_wait_seconds")
    with pytest.raises(ValueError, match="parenthesis"):
        complaints("sum(")


async def test_what_the_expressions_ask_for_is_really_exposed(
    own_redis: RedisServer, registry: CollectorRegistry
) -> None:
    """A registry that has seen calls of every kind exposes each sample and each label asked for."""
    exposed: dict[str, list[dict[str, str]]] = {}
    async with live_a_little(own_redis, registry):
        for family in registry.collect():
            for sample in family.samples:
                exposed.setdefault(sample.name, []).append(dict(sample.labels))
    for name, labels in sample_names().items():
        assert name in exposed, f"{name} is not exposed"
        assert {frozenset(found) for found in exposed[name]} == {labels}, name

    recorded = recorded_names()
    for where, expression in expressions():
        for selector in selectors(filled_in(expression)):
            if selector.name in recorded or not selector.name.startswith("genesis_"):
                continue
            assert any(
                all(fits(labels, *matcher) for matcher in selector.matchers if matcher[0] in labels)
                for labels in exposed[selector.name]
            ), f"{where}: nothing exposed fits {selector}"


def fits(labels: dict[str, str], label: str, operator: str, value: str) -> bool:
    matches = bool(re.fullmatch(value, labels[label])) if "~" in operator else value == labels[label]
    return matches is not operator.startswith("!")


@asynccontextmanager
async def live_a_little(server: RedisServer, registry: CollectorRegistry) -> AsyncIterator[None]:
    """Calls that are granted, wait, time out, hang up, are evicted, and fail, on one registry."""
    telemetry = Telemetry(registry, logger=sick_logger())
    backend = RedisBackend(server.url, lease=1.0)
    async with Queue(backend, telemetry=telemetry) as queue:

        async def call(item: str, timeout: float | None = None, hold: bool = False) -> None:
            async with queue.slot("sales", item_id=item, max_concurrent=1, timeout=timeout):
                if hold:
                    await asyncio.Event().wait()

        for number in range(FEWEST_HOLDS):
            await call(f"short {number}")
        holder = asyncio.create_task(call("holder", hold=True))
        await wait_until(lambda: value(registry, names.HOLDING, queue="sales") == 1, "it holds")
        waiter = asyncio.create_task(call("waiter"))
        hung_up = asyncio.create_task(call("hung up"))
        evicted = asyncio.create_task(call("evicted"))
        await wait_until(lambda: value(registry, names.WAITING, queue="sales") == 3, "three wait")
        await wait_until(
            lambda: value(registry, names.DEPTH, queue="sales", backend="redis") == 3, "a snapshot"
        )
        with pytest.raises(QueueTimeoutError):
            await call("impatient", timeout=0.3)
        hung_up.cancel()
        await queue.evict("sales", "evicted")
        with pytest.raises(EvictedError):
            await evicted
        await queue.stats("sales")
        await queue.position("sales", "waiter")
        await queue.entries("sales")
        await queue.set_limit("sales", None)
        server.pause()
        with pytest.raises(BackendUnavailableError):
            await queue.ping()
        with pytest.raises(BackendUnavailableError):
            await waiter
        server.resume()
        # Nobody waits any more. The snapshot from before the pause, with waiters, is about to expire.
        await wait_until(
            lambda: value(registry, names.DEPTH, queue="sales", backend="redis") == 0,
            "Redis answers again, and the snapshot is fresh",
        )
        holder.cancel()
        await asyncio.gather(holder, hung_up, return_exceptions=True)
        yield


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)
