"""Follow a call: by `item_id`, its spans and logs on every instance, and the state of its queue."""

from __future__ import annotations

from dashboards import frame, log_queries, queries
from dashboards.board import Row, board, text_variable
from dashboards.panels import (
    SECONDS,
    Description,
    Json,
    Query,
    drawn_as_limit,
    lines,
    log_lines,
    log_stat,
    one_trace,
)
from dashboards.tables import found_traces
from dashboards.tiles import WAIT_SECONDS
from genesis.observability import names


def one_call() -> Json:
    return board(
        frame.CALL,
        frame.TITLES[frame.CALL],
        "One call, by its item_id: how long it waited and for whom, on which instance, what it logged, "
        "and what its queue looked like meanwhile.",
        variables=[
            frame.ITEM_ID,
            frame.SERVICE,
            frame.queue_variable(several=True),
            frame.JOB,
            frame.INSTANCE,
            frame.DATASOURCE,
            frame.LOKI,
            frame.JAEGER,
            text_variable("trace_id", "Trace", "The trace that is open below.", hidden=True),
        ],
        links=frame.others(frame.CALL),
        since="now-3h",
        rows=[
            Row(3, [(6, panel) for panel in _in_one_look()]),
            "What it did",
            Row(6, [(24, _traces())]),
            Row(14, [(12, _trace()), (12, _log())]),
            "Its queue meanwhile",
            Row(8, [(8, _line()), (8, _slots()), (8, _oldest())]),
        ],
    )


def _in_one_look() -> list[Json]:
    return [
        log_stat(
            "Waited",
            Description(
                "How long the call waited, as its own log says; no value while it still waits.",
                bad="above 20 s.",
                then="the link `released_by` of its wait span leads to the call that made room.",
            ),
            SECONDS,
            log_queries.log_number("waited"),
            empty="not ended, or no such call",
        ),
        log_stat(
            "Held its slot for",
            Description(
                "How long the call held its slot, as its own log says; no value while it holds "
                "it, or if it never got one.",
                bad="far above the mean of the queue.",
                then="the spans inside `hold`.",
            ),
            SECONDS,
            log_queries.log_number("held"),
            empty="not ended, or never held",
        ),
        log_stat(
            "Position on entering",
            Description(
                "Its position in the line when it entered; 0 is a slot at once.",
                bad="never by itself; a high position and a short wait is a healthy queue.",
                then="the depth below.",
            ),
            "none",
            log_queries.log_number("position"),
            empty="never in the line",
        ),
        log_stat(
            "Instances that logged it",
            Description(
                "On how many instances the call left a line.",
                bad=(
                    "more than one means that the id was used again, or that another instance "
                    "reclaimed it from a dead one."
                ),
                then="reclaimed in its log.",
            ),
            "none",
            log_queries.log_instances(),
            empty="no such call",
        ),
    ]


def _traces() -> Json:
    return found_traces(
        "Its traces, on every instance",
        Description(
            "All traces of the service in the time shown in which a span bears this item_id, from "
            "every instance: they share the service's name. One is healthy.",
            bad="none: not sampled, or earlier. More than one: the id was used again.",
            then="a click on one opens it below, and zooms to the call.",
        ),
        "$service",
        f'{names.ITEM_ID}="$item_id"',
        [frame.TO_TRACE, frame.TO_TIME_OF_TRACE],
    )


def _trace() -> Json:
    return one_trace(
        "The trace",
        Description(
            "The trace chosen above: acquire with enqueue and wait, hold with what the call "
            "did, release.",
            bad="a long wait.",
            then=(
                "its link released_by leads to the call whose slot it got, on whichever "
                "instance; granted_to of release, to the next in line."
            ),
        ),
        "$trace_id",
    )


def _log() -> Json:
    return log_lines(
        "Its log, on every instance",
        Description(
            "Every line that bears the item_id, oldest first.",
            bad="lost, reclaimed, evicted, error, timeout.",
            then="instance_id says where; trace_id leads to the trace.",
        ),
        f'{log_queries.log_of_call()} | line_format "{log_queries.SHORT}"',
        empty="no line, or no service is chosen",
        oldest_first=True,
    )


def _line() -> Json:
    return lines(
        "Waiting",
        Description(
            "Waiters of the queue, as the backend counts them.",
            bad="a line that grew while the call waited: demand.",
            then=("if it was short and the call waited long, the line did not move: see the slots."),
        ),
        "none",
        [Query(queries.shared(names.DEPTH), "{{queue}}")],
        empty="no call lasted for a heartbeat",
    )


def _slots() -> Json:
    return lines(
        "Slots: in use, and how many there are",
        Description(
            "Slots in use over all instances, and (dashed) the limits, summed over the chosen queues.",
            bad="apart from each other while the call waited: a fault. Together: too few.",
            then="the queue's own dashboard, in the head.",
        ),
        "none",
        [
            Query(queries.in_use_of_all(), "in use"),
            Query(queries.limit_of_all(), "slots"),
        ],
        empty="no calls",
        overrides=[drawn_as_limit("slots")],
    )


def _oldest() -> Json:
    return lines(
        "Longest wait",
        Description(
            "The longest wait at that time. With head starts, that call need not be the next one.",
            bad="a slope of one second a second: nobody was granted a slot in that time.",
            then="the log of the queue for that time.",
        ),
        SECONDS,
        [Query(queries.shared(names.OLDEST_WAIT), "{{queue}}")],
        thresholds=WAIT_SECONDS,
        empty="no call lasted for a heartbeat",
    )
