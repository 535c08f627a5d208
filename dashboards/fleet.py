"""Queries about the instances, the backend and the alerts, for all queues.

Queries that are 0 for an idle fleet, but empty without instances, end with `or_zero`: an idle fleet and
missing data must not look the same.
"""

from __future__ import annotations

from typing import Literal

from dashboards.promql import PROCESS, RECENT, SHOWN, STEP, happened, series, summed
from genesis.observability import names

FAILED = 'outcome=~"unavailable|error"'
WAITS_BY_DESIGN = 'operation!="wait"'  # `wait` lasts as long as the call waits


def _scraped() -> str:
    # Every job has an `up`, and All is a pattern: restrict it to jobs that have exposed this library.
    ours = series(names.BUILD_INFO, of='job=~"$job", instance=~".+"')
    jobs = f"group by (job) (last_over_time({ours}[{SHOWN}]))"
    return f"{series('up', of=PROCESS)} and on (job) {jobs}"


def up() -> str:
    return f"max by (instance) ({_scraped()})"


def up_count() -> str:
    """The number of instances that Prometheus reaches; empty if there is no instance at all."""
    return f"sum({_scraped()})"


def any_up() -> str:
    return f"({up_count()} > 0)"


def down_count() -> str:
    return f"count({_scraped()}) - {up_count()}"


BACKEND_UNUSED, BACKEND_FINE, BACKEND_DISRUPTED, BACKEND_AWAY = -1, 0, 1, 2
SHARE_THAT_FAILS = 0.05  # of the operations of one instance, as the alert has it


def backend_state(by: Literal["", "instance"] = "") -> str:
    """The state of the backend.

    2 while an instance does not reach it, or many of its operations fail; 1 if it was away, refused
    something or lost data within five minutes; else 0, or -1 if no instance has needed it yet.
    """
    reached = series(names.BACKEND_UP, of=PROCESS)
    cut_off = summed(by, f"{reached} == bool 0")
    share = f"{operations('instance', FAILED)} / {operations('instance', WAITS_BY_DESIGN)}"
    failing = share if by else f"max({share})"
    away = f"{BACKEND_AWAY} * ({cut_off} > bool 0) > 0"
    fails = f"{BACKEND_AWAY} * ({failing} > bool {SHARE_THAT_FAILS:g}) > 0"
    touched = f"{BACKEND_DISRUPTED} * ({disruptions(by, RECENT)} > bool 0.5) > 0"
    fine = f"{BACKEND_FINE} * {summed(by, reached)}"
    there = f"({up()} > 0)" if by else any_up()
    return f"({away}) or ({fails}) or ({touched}) or {fine} or {BACKEND_UNUSED} + 0 * {there}"


def operation_milliseconds(quantile: float, by: str, window: str = STEP) -> str:
    buckets = series(names.OPERATION_SECONDS + "_bucket", WAITS_BY_DESIGN, of=PROCESS)
    labels = f"le, {by}" if by else "le"
    # Without operations that did not occur: their quantile is NaN.
    quantiles = f"histogram_quantile({quantile:g}, sum by ({labels}) (rate({buckets}[{window}])))"
    return f"1000 * {quantiles} > 0"


def operations(by: str, *more: str) -> str:
    return summed(by, f"rate({series(names.OPERATION_SECONDS + '_count', *more, of=PROCESS)}[{STEP}])")


def alerts() -> str:
    """Seconds for which each firing alert has been true, with the displayed labels."""
    shown = "alertname, severity, queue, instance"
    ours = 'job=~"$job", alertname=~"Genesis.+"'
    since = f"min by ({shown}) (ALERTS_FOR_STATE{{{ours}}})"
    firing = f'max by ({shown}) (ALERTS{{{ours}, alertstate="firing"}})'
    return f"time() - {since} and {firing}"


def disruptions(by: str = "reason", window: str = STEP) -> str:
    return happened(names.DISRUPTIONS, by, of=PROCESS, window=window)


def failed_operations() -> str:
    """By how they failed."""
    return happened(names.OPERATION_SECONDS + "_count", "outcome", FAILED, of=PROCESS)


def telemetry_errors(by: str = "sink", window: str = STEP) -> str:
    return happened(names.TELEMETRY_ERRORS, by, of=PROCESS, window=window)


# Where there is no number ---------------------------------------------------------------------------
def or_zero(what: str) -> str:
    """0 while there are instances; empty without instances."""
    return f"{what} or 0 * {any_up()}"


def or_zero_unless(calls: str, what: str) -> str:
    """As `or_zero`, but empty while there are such calls and the backend is unreachable."""
    return f"{what} or (0 * {any_up()} unless ({calls} > 0 and ({backend_state()}) == {BACKEND_AWAY}))"


NOBODY = -1


def or_nobody(what: str) -> str:
    """-1, which is shown as words, while there are instances but nothing to count."""
    return f"{what} or {NOBODY} + 0 * {any_up()}"
