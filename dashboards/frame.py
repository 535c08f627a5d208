"""Shared by the three dashboards: their names, variables and links."""

from __future__ import annotations

from dashboards import board
from dashboards.panels import Json
from genesis.observability import names

OVERVIEW, QUEUE, CALL = "genesis-overview", "genesis-queue", "genesis-call"
TITLES = {
    OVERVIEW: "Genesis / Overview",
    QUEUE: "Genesis / Queue",
    CALL: "Genesis / Follow a call",
}

DATASOURCE = board.datasource_variable("datasource", "Data source", "prometheus")
LOKI = board.datasource_variable("loki", "Logs", "loki")
JAEGER = board.datasource_variable("jaeger", "Traces", "jaeger")
JOB = board.label_variable(
    "job",
    "Job",
    "The application, by the name of its scrape job. Applications on one Redis belong together; "
    "choose one if they have a Redis each.",
    names.BUILD_INFO,
    all_is=None,  # of those that bear our metrics: `up` is there for every job of a Prometheus
)
INSTANCE = board.label_variable(
    "instance",
    "Instance",
    "Narrows what instances report of their own calls. What is true of the line itself stays the same "
    "whichever instances are chosen, as long as one of them has calls in it.",
    names.BUILD_INFO,
    of='job=~"$job"',
)
SERVICE = board.log_label_variable(
    "service",
    "Service",
    "The service.name of the application, the same on every instance, as traces and logs bear it.",
    "service_name",
)
ITEM_ID = board.text_variable(
    "item_id",
    "item_id",
    "The id of the call, as the application gave it. It stands in every span and every log line.",
)


def queue_variable(*, several: bool) -> Json:
    return board.label_variable(
        "queue",
        "Queue",
        "The waiting line. The first 100 of each instance have a name of their own; its others are "
        "_other.",
        names.WAITING,
        of='job=~"$job"',
        several=several,
    )


def others(here: str) -> list[Json]:
    return [board.to_dashboard(uid, title) for uid, title in TITLES.items() if uid != here]


# The content of a cell is encoded: an id can contain `&`, `+` or `#`, which would truncate the URL.
# In a table: to the dashboard of that line's queue, or to the overview of that line's instance.
_KEPT = "${datasource:queryparam}&${job:queryparam}&${__url_time_range}"
TO_QUEUE = board.cell_link(
    "This queue in depth",
    f"/d/{QUEUE}?{_KEPT}&${{instance:queryparam}}&var-queue=${{__data.fields.Queue:percentencode}}",
)
TO_INSTANCE = board.cell_link(
    "Only this instance",
    f"/d/{OVERVIEW}?{_KEPT}&${{queue:queryparam}}&var-instance=${{__data.fields.Instance:percentencode}}",
)
# In the list of traces: the same dashboard, with that trace opened; or also with the time narrowed to
# ten minutes around its start, which is the third field of what Jaeger's data source gives.
_ALL_BUT_TIME = (
    "${datasource:queryparam}&${job:queryparam}&${loki:queryparam}&${jaeger:queryparam}"
    "&${instance:queryparam}&${queue:queryparam}&${service:queryparam}&${item_id:queryparam}"
    "&var-trace_id=${__value.raw}"
)
TO_TRACE = board.cell_link("Open below", f"/d/{CALL}?{_ALL_BUT_TIME}&${{__url_time_range}}")
TO_TIME_OF_TRACE = board.cell_link(
    "Open below, and zoom to the call",
    f"/d/{CALL}?{_ALL_BUT_TIME}&time=${{__data.fields[2].numeric}}&time.window=600000",
)
