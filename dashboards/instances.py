"""Panels of the instances and of the backend, for all queues."""

from __future__ import annotations

from dashboards import fleet, promql, queries
from dashboards.panels import (
    BY_OUTCOME,
    MILLISECONDS,
    SECONDS,
    Description,
    Json,
    Query,
    bad_above,
    coloured,
    lines,
)
from dashboards.tiles import WAIT_SECONDS

OPERATION_MILLISECONDS = bad_above(50, 500)


NONE_SEEN = "none seen"  # also shown without data; the tile of the instances distinguishes the two
NO_INSTANCE = "no instance has had a call"


def of_the_backend() -> list[Json]:
    return [_slowest_operations(), _disruptions(), _failed_operations()]


def by_instance() -> list[Json]:
    return [_waiting_at(), _holding_at(), _served_at(), _quantile_at()]


def _slowest_operations() -> Json:
    return lines(
        "Backend operations, p99",
        Description(
            "The slowest hundredth of each operation on the backend; `wait`, which lasts as "
            "long as the line, is left out.",
            bad="above 50 ms (dashed); callers feel it from half a second on.",
            then="all operations slow is Redis or the network; heartbeat alone is a busy event loop.",
        ),
        MILLISECONDS,
        [Query(fleet.operation_milliseconds(0.99, "operation"), "{{operation}}")],
        thresholds=OPERATION_MILLISECONDS,
        empty="no operations",
    )


def _disruptions() -> Json:
    return lines(
        "Redis: disruptions",
        Description(
            "How often an instance lost the backend, or found its data gone, by reason. Healthy: no "
            "bar.",
            bad="any. One for each instance at one time is Redis; one instance alone is its network.",
            then="Redis' log and its memory policy (noeviction), then the network between.",
        ),
        "none",
        [Query(fleet.disruptions(), "{{reason}}")],
        bars="counts",
        empty=NONE_SEEN,
        overrides=[
            coloured("^(connection|timeout)$", "orange"),
            coloured("^(data_lost|denied|read_only|refused)$", "red"),
        ],
    )


def _failed_operations() -> Json:
    return lines(
        "Operations that failed",
        Description(
            "Operations on the backend that ended neither well nor by the caller's own doing (Redis "
            "out of reach, or an error), in the minute that begins with the bar. Healthy: no bar.",
            bad="any.",
            then="'Redis: disruptions' for the reason; `backend_unavailable` in the log.",
        ),
        "none",
        [Query(fleet.failed_operations(), "{{outcome}}")],
        bars="counts",
        empty=NONE_SEEN,
        overrides=BY_OUTCOME,
    )


def _waiting_at() -> Json:
    return lines(
        "Waiting, by instance",
        Description(
            "Calls of each instance that wait.",
            bad=(
                "most of the waiters on one instance for long: the load balancer is uneven, or that"
                " instance does not notice callers who hang up."
            ),
            then="its log.",
        ),
        "none",
        [Query(queries.waiting("instance"), "{{instance}}")],
        empty=NO_INSTANCE,
    )


def _holding_at() -> Json:
    return lines(
        "Holding, by instance",
        Description(
            "Calls of each instance that hold a slot.",
            bad=(
                "a flat line that does not move while others wait: a body that never ends keeps"
                " its slot."
            ),
            then="entries() names the calls; evict() takes one out.",
        ),
        "none",
        [Query(queries.holding("instance"), "{{instance}}")],
        empty=NO_INSTANCE,
    )


def _served_at() -> Json:
    return lines(
        "Answered a minute, by instance",
        Description(
            "Callers a minute who were granted a slot, by the instance that has them.",
            bad="one at zero while the others answer.",
            then="whether it gets calls at all (the load balancer), then its operations.",
        ),
        "cpm",
        [
            Query(
                queries.per_minute(queries.ended("instance", promql.STEP, 'outcome="granted"')),
                "{{instance}}",
            )
        ],
        empty=NO_INSTANCE,
    )


def _quantile_at() -> Json:
    return lines(
        "Wait, 95th percentile by instance",
        Description(
            "The line is one for all instances, so they should not differ.",
            bad="one above the others for long: it learns late that it is next.",
            then="its heartbeat and `enter` latency, below.",
        ),
        SECONDS,
        [Query(queries.wait_quantile(0.95, "instance"), "{{instance}}", exemplars=True)],
        thresholds=WAIT_SECONDS,
        empty="nobody was answered",
    )


def operations() -> Json:
    return lines(
        "Operation latency, p99",
        Description(
            "The slowest hundredth of each operation on the backend, over all queues of the "
            "chosen instances; `wait`, which lasts as long as the line, is left out.",
            bad="above 50 ms (dashed).",
            then=(
                "all slow is Redis or the network; one instance alone (choose it above) is its "
                "event loop."
            ),
        ),
        MILLISECONDS,
        [Query(fleet.operation_milliseconds(0.99, "operation"), "{{operation}}")],
        thresholds=OPERATION_MILLISECONDS,
        empty="no operations",
    )


def operation_rate() -> Json:
    return lines(
        "Operations, by how they ended",
        Description(
            "Operations on the backend a second, over all queues of the chosen instances.",
            bad=(
                "unavailable or error, at any rate. timeout, cancelled and evicted are callers,"
                " not faults."
            ),
            then="Redis' own log; `backend_unavailable` in the log below names the cause.",
        ),
        "ops",
        [Query(f"{fleet.operations('outcome')} > 0", "{{outcome}}")],
        bars="rates",
        empty="no operations",
        overrides=BY_OUTCOME,
    )
