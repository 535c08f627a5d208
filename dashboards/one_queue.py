"""Queue: one waiting line in depth."""

from __future__ import annotations

from dashboards import frame, instances, log_queries, queries, tiles
from dashboards.board import Row, board
from dashboards.instances import NONE_SEEN
from dashboards.panels import (
    BY_OUTCOME,
    SECONDS,
    Description,
    Json,
    Query,
    coloured,
    drawn_as_limit,
    heatmap,
    lines,
    log_lines,
)
from dashboards.tiles import WAIT_SECONDS
from genesis.observability import names

ALL = ""


def one_queue() -> Json:
    return board(
        frame.QUEUE,
        frame.TITLES[frame.QUEUE],
        "One queue in depth: how long callers wait, what the line and its slots do, how calls end, "
        "which instance does what, and what the log says.",
        variables=[
            frame.DATASOURCE,
            frame.LOKI,
            frame.JOB,
            frame.INSTANCE,
            frame.queue_variable(several=False),
            frame.SERVICE,
        ],
        links=frame.others(frame.QUEUE),
        since="now-30m",
        rows=[
            Row(
                4,
                [
                    (4, tiles.waiting()),
                    (4, tiles.longest_wait()),
                    (4, tiles.expected_wait()),
                    (4, tiles.in_time()),
                    (4, tiles.gave_up()),
                    (4, tiles.refused()),
                ],
            ),
            Row(
                4,
                [
                    (4, tiles.fullest()),
                    (4, tiles.longest_hold()),
                    (4, tiles.stuck()),
                    (4, tiles.reclaimed()),
                    (4, tiles.backend()),
                    (4, tiles.instances()),
                ],
            ),
            "How long callers wait",
            Row(9, [(8, _wait_quantiles()), (8, _answered()), (8, _gave_up())]),
            "The line and its slots",
            Row(8, [(6, _depth()), (6, _slots()), (6, _oldest()), (6, _oldest_hold())]),
            "How calls go",
            Row(8, [(6, _endings()), (6, _hold_endings()), (6, _positions()), (6, _hold_quantiles())]),
            Row(8, [(12, _refused()), (12, _taken_back())]),
            "By instance",
            Row(8, [(6, panel) for panel in instances.by_instance()]),
            "The backend, for all queues",
            Row(8, [(12, instances.operations()), (12, instances.operation_rate())]),
            "The log",
            Row(12, [(24, _log())]),
        ],
    )


def _wait_quantiles() -> Json:
    return lines(
        "Wait of those who were answered",
        Description(
            "Median, 80th, 95th and 99th percentile of the wait of answered callers. Each diamond is "
            "one call: a click on it leads to its trace.",
            bad=(
                "the 80th above the dashed 20 s: 80/20 is missed. A low median with a high 99th is a "
                "burst; a high median is a lack of slots."
            ),
            then="the highest diamond, and whom its call waited for.",
        ),
        SECONDS,
        [
            Query(queries.wait_quantile(quantile), f"p{100 * quantile:g}", exemplars=True)
            for quantile in (0.5, 0.8, 0.95, 0.99)
        ],
        thresholds=WAIT_SECONDS,
        empty="nobody was answered",
    )


def _answered() -> Json:
    return heatmap(
        "Waits of the answered",
        Description(
            "How many answered callers had waited for how long; the darker, the more.",
            bad="a dark band that climbs; a second one far above the first: a long call before them.",
            then="the slots in use at that moment, below.",
        ),
        "s",
        Query(queries.waits_of_the_answered(), "{{le}}"),
        empty="nobody was answered",
    )


def _gave_up() -> Json:
    return heatmap(
        "Waits of those who gave up",
        Description(
            "How many callers who hung up, or whose timeout ended, had waited for how long.",
            bad=(
                "many callers. A sharp edge at one height is a timeout that you set; a cloud is the "
                "callers' patience; a band near 0 is callers who hang up during the announcement."
            ),
            then="How waits end, below, for the same time.",
        ),
        "s",
        Query(queries.waits_of_those_who_gave_up(), "{{le}}"),
        empty="nobody gave up",
    )


def _depth() -> Json:
    return lines(
        "Depth",
        Description(
            "Waiters in the line as the backend counts them, and as the instances count their own "
            "calls. "
            "The two differ for a heartbeat at most, unless some instance has more than 100 queues and "
            "counts this one under _other.",
            bad="the line above the instances for longer: an instance that died, or that is not "
            "scraped.",
            then="reclaimed, in the log.",
        ),
        "none",
        [
            Query(queries.depth_everywhere(), "the line"),
            Query(queries.waiting_everywhere(), "callers of the instances"),
        ],
        empty="no calls",
    )


def _slots() -> Json:
    return lines(
        "Slots",
        Description(
            "Slots in use as the backend counts them, calls that hold one as the instances count "
            "them, and "
            "(dashed) the last known limit.",
            bad=(
                "in use at the limit for long, too few slots; in use below the limit while callers "
                "wait, "
                "a fault; in use above it, the limit was just lowered or Redis lost its data."
            ),
            then="set_limit, or the log.",
        ),
        "none",
        [
            Query(queries.in_all(names.IN_USE), "in use"),
            Query(queries.holding(ALL), "calls that hold one"),
            Query(queries.limit_of_all(), "limit"),
        ],
        empty="no calls",
        overrides=[drawn_as_limit("limit")],
    )


def _oldest() -> Json:
    return lines(
        "Longest and expected wait",
        Description(
            "The longest wait of those who waited at each moment, and how long a newcomer would have "
            "waited. Healthy: a saw with small teeth.",
            bad="a slope of one second a second (nobody is granted), or above the dashed 20 s.",
            then="slots in use at that moment: full is demand, free is a fault.",
        ),
        SECONDS,
        [
            Query(queries.longest_wait(), "longest"),
            Query(queries.expected_wait(), "expected"),
        ],
        thresholds=WAIT_SECONDS,
        empty="nobody waited",
    )


def _oldest_hold() -> Json:
    return lines(
        "Longest hold",
        Description(
            "For how long the call that had held its slot longest had held it, at each moment. "
            "Healthy: a "
            "saw.",
            bad="a slope of one second a second beyond the usual: that call never leaves its slot.",
            then="`genesis entries QUEUE` names it; `genesis evict QUEUE ITEM` frees the slot.",
        ),
        SECONDS,
        [Query(queries.longest_hold(), "longest")],
        empty="nobody held",
    )


def _endings() -> Json:
    return lines(
        "How waits end",
        Description(
            "Callers a minute whose wait ended, by how: granted; timeout (your time ended); "
            "cancelled (they hung up); evicted (an operator took them out); error (Redis out of"
            " reach).",
            bad="anything but granted that grows.",
            then="errors, the backend below; the others, the wait quantiles.",
        ),
        "cpm",
        [Query(f"{queries.per_minute(queries.ended('outcome'))} > 0", "{{outcome}}")],
        bars="rates",
        empty="no calls",
        overrides=BY_OUTCOME,
    )


def _hold_endings() -> Json:
    return lines(
        "How holds end",
        Description(
            "Slots a minute that were given back, by how: released; error (the body raised); "
            "lost (the lease lapsed while the call went on); evicted.",
            bad=(
                "any lost: that instance could not reach Redis for a whole lease, or its event "
                "loop stood still."
            ),
            then="lost in the log names call and instance.",
        ),
        "cpm",
        [Query(f"{queries.per_minute(queries.held('outcome'))} > 0", "{{outcome}}")],
        bars="rates",
        empty="no calls",
        overrides=BY_OUTCOME,
    )


def _refused() -> Json:
    return lines(
        "Refused",
        Description(
            "Calls that were turned away in the minute that begins with the bar: full "
            "(`max_waiting`), busy (`timeout=0`), draining (the instance is being stopped). They "
            "stand in no wait and in no service level.",
            bad="full: the limit of the line is reached.",
            then="demand against capacity on the Overview.",
        ),
        "none",
        [Query(queries.refused("reason"), "{{reason}}")],
        bars="counts",
        empty=NONE_SEEN,
        overrides=BY_OUTCOME,
    )


def _taken_back() -> Json:
    return lines(
        "Reclaimed and lost",
        Description(
            "Places and slots that were taken back from instances that died or were cut off, and slots "
            "that were lost while their call went on.",
            bad="any bar.",
            then="`reclaimed` and `lost` in the log name the call and the instance.",
        ),
        "none",
        [
            Query(queries.reclaimed("state"), "reclaimed, {{state}}"),
            Query(queries.lost(ALL), "lost"),
        ],
        bars="counts",
        empty=NONE_SEEN,
        overrides=[
            *BY_OUTCOME,
            coloured("^reclaimed, holding$", "dark-orange"),
            coloured("^reclaimed, waiting$", "orange"),
        ],
    )


def _positions() -> Json:
    return lines(
        "Position on entering",
        Description(
            "The position of callers in the line when they entered; 0 is a slot at once.",
            bad="a median above 0 for long: most callers have to wait.",
            then="demand against capacity on the Overview.",
        ),
        "none",
        [
            Query(queries.position_quantile(quantile), f"p{100 * quantile:g}")
            for quantile in (0.5, 0.95)
        ],
        empty="no calls",
    )


def _hold_quantiles() -> Json:
    return lines(
        "How long a slot is held",
        Description(
            "Length of the calls: mean, median and 95th percentile.",
            bad=(
                "a mean that rises: the same slots then take fewer calls, which looks like "
                "demand and is not."
            ),
            then="a diamond is a call; its trace shows what the body did in that time.",
        ),
        SECONDS,
        [
            Query(queries.mean_hold(ALL), "mean"),
            *(
                Query(queries.hold_quantile(quantile), f"p{100 * quantile:g}", exemplars=True)
                for quantile in (0.5, 0.95)
            ),
        ],
        empty="no call has ended",
    )


def _log() -> Json:
    return log_lines(
        "Log of the queue",
        Description(
            "What the instances logged about this queue, newest first; level INFO is needed.",
            bad="lost, reclaimed, error, or limit_changed that nobody ordered.",
            then=(
                "a line that is opened up shows its item_id, for Follow a call, and its trace_id, "
                "which leads to the trace. Empty? Choose the service, above."
            ),
        ),
        log_queries.log_of_queue(),
        empty="no line, or no service is chosen",
    )
