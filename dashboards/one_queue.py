"""Queue: one waiting line in depth."""

from __future__ import annotations

from dashboards import frame, queries
from dashboards.overview import (
    ABANDONS,
    ANSWER_SECONDS,
    OCCUPANCY,
    OLDEST_SECONDS,
    OPERATION_SECONDS,
    SERVICE_LEVEL,
)
from dashboards.panels import (
    NOTHING_HAPPENED,
    Json,
    Query,
    Row,
    Says,
    any_is_bad,
    any_needs_a_look,
    board,
    drawn_as_limit,
    heatmap,
    lines,
    log_lines,
    stat,
)
from genesis.observability import names

ALL, SHOWN = "", queries.SHOWN


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
            Row(4, [(3, panel) for panel in _in_one_look()]),
            "How long callers wait",
            Row(9, [(8, _wait_quantiles()), (8, _answered()), (8, _gave_up())]),
            "The line and its slots",
            Row(8, [(8, _depth()), (8, _slots()), (8, _oldest())]),
            "How calls go",
            Row(8, [(6, _endings()), (6, _hold_endings()), (6, _positions()), (6, _hold_quantiles())]),
            "By instance",
            Row(8, [(6, _waiting_at()), (6, _holding_at()), (6, _served_at()), (6, _quantile_at())]),
            "The backend, for all queues",
            Row(8, [(12, _operations()), (12, _operation_rate())]),
            "The log",
            Row(12, [(24, _log())]),
        ],
    )


def _in_one_look() -> list[Json]:
    return [
        stat(
            "Waiting now",
            Says(
                "Callers in this line, as the instances that hold their calls count them.",
                bad="if it does not fall again.",
                then="Depth, below.",
            ),
            "none",
            [Query(queries.waiting(ALL))],
            empty="nobody",
            decimals=0,
        ),
        stat(
            "Longest wait now",
            Says(
                "For how long the head of the line has waited.",
                bad="above a minute; red above five.",
                then="if it climbs second by second the line does not move: see the slots.",
            ),
            "s",
            [Query(queries.longest_wait())],
            thresholds=OLDEST_SECONDS,
            empty="nobody",
            decimals=0,
        ),
        stat(
            "Occupancy now",
            Says(
                "Slots in use, of those there are.",
                bad="above 85 % for long; red above 95 %: the next caller waits.",
                then="raise the limit (set_limit) if there are agents for it.",
            ),
            "percentunit",
            [Query(queries.occupancy_of_all())],
            thresholds=OCCUPANCY,
            empty="idle",
            decimals=0,
        ),
        stat(
            "Within 20 s, of all",
            Says(
                "Callers answered within 20 s, of all whose wait ended in the time shown.",
                bad="below 80 %; red below 60 %.",
                then="the wait quantiles say when it began.",
            ),
            "percentunit",
            [Query(queries.service_level_strict(ALL, SHOWN), now=True)],
            thresholds=SERVICE_LEVEL,
            empty="no calls",
            decimals=1,
        ),
        stat(
            "Average speed of answer",
            Says(
                "Mean wait of the callers who were answered in the time shown.",
                bad="above 20 s; red above a minute.",
                then="compare the arrivals and the length of calls with an hour ago.",
            ),
            "s",
            [Query(queries.speed_of_answer(ALL, SHOWN), now=True)],
            thresholds=ANSWER_SECONDS,
            empty="no calls",
            decimals=1,
        ),
        stat(
            "Abandon rate",
            Says(
                "Callers who left without an answer, of all whose wait ended in the time shown; who "
                "gave up within 5 s counts in neither.",
                bad="above 5 %; red above 10 %.",
                then="How waits end, below: timeouts are yours, cancellations theirs.",
            ),
            "percentunit",
            [Query(queries.abandon_rate(ALL, SHOWN), now=True)],
            thresholds=ABANDONS,
            empty="no calls",
            decimals=1,
        ),
        stat(
            "Waiting though slots are free",
            Says(
                "Callers who wait while a slot is free, in one and the same report of the line.",
                bad="any, for longer than a lease (15 s).",
                then=(
                    "the log below for `reclaimed` and `backend_unavailable`; then the "
                    "heartbeat's latency."
                ),
            ),
            "none",
            [Query(queries.or_zero(f"max({queries.stuck()})"), now=True)],
            thresholds=any_is_bad(),
            decimals=0,
        ),
        stat(
            "Left by dead instances",
            Says(
                "Waiters in the line that no reachable instance has: those of an instance that "
                "died, until they are reaped, or of one that is not scraped.",
                bad="for longer than a lease (15 s).",
                then="Instances down on the Overview; reclaimed in the log.",
            ),
            "none",
            [Query(queries.or_zero(f"max({queries.left_by_the_dead()})"), now=True)],
            thresholds=any_needs_a_look(),
            decimals=0,
        ),
    ]


def _wait_quantiles() -> Json:
    return lines(
        "Wait of those who were answered",
        Says(
            "Median, 80th, 95th and 99th percentile of the wait of answered callers. Each diamond is "
            "one call: a click on it leads to its trace.",
            bad=(
                "the 80th above the dashed 20 s: 80/20 is missed. A low median with a high 99th is a "
                "burst; a high median is a lack of slots."
            ),
            then="the highest diamond, and whom its call waited for.",
        ),
        "s",
        [
            Query(queries.wait_quantile(quantile), f"p{100 * quantile:g}", exemplars=True)
            for quantile in (0.5, 0.8, 0.95, 0.99)
        ],
        thresholds=ANSWER_SECONDS,
    )


def _answered() -> Json:
    return heatmap(
        "Waits of the answered",
        Says(
            "How many answered callers had waited for how long; the darker, the more.",
            bad="a dark band that climbs; a second one far above the first: a long call before them.",
            then="the slots in use at that moment, below.",
        ),
        "s",
        Query(queries.waits_of_the_answered(), "{{le}}"),
    )


def _gave_up() -> Json:
    return heatmap(
        "Waits of those who gave up",
        Says(
            "How many callers who hung up, or whose timeout ended, had waited for how long.",
            bad=(
                "anything much. A sharp edge at one height is a timeout of yours; a cloud is the "
                "callers' patience; a band near 0 hangs up at the announcement."
            ),
            then="How waits end, below, for the same time.",
        ),
        "s",
        Query(queries.waits_of_those_who_gave_up(), "{{le}}"),
    )


def _depth() -> Json:
    return lines(
        "Depth: the line, and the callers the instances have",
        Says(
            "Waiters in the line as the backend counts them, and as the instances count their "
            "own calls. The two differ for a heartbeat at most.",
            bad=(
                "the line above the instances for longer: waiters that a dead instance left, "
                "until they are reaped (a lease)."
            ),
            then="reclaimed, in the log.",
        ),
        "none",
        [
            Query(queries.depth_everywhere(), "the line"),
            Query(queries.waiting_everywhere(), "callers of living instances"),
            Query(queries.left_by_the_dead(), "left by the dead"),
        ],
    )


def _slots() -> Json:
    return lines(
        "Slots: in use, and how many there are",
        Says(
            "Slots in use as the backend counts them, calls that hold one as the instances "
            "count them, and (dashed) the limit in force.",
            bad=(
                "in use at the limit for long, too few slots; in use below the limit while "
                "callers wait, a fault; in use above it, the limit was just lowered or Redis "
                "lost its data."
            ),
            then="set_limit, or the log.",
        ),
        "none",
        [
            Query(queries.shared(names.IN_USE), "in use"),
            Query(queries.holding(ALL), "calls that hold one"),
            Query(queries.shared(names.LIMIT), "limit"),
        ],
        overrides=[drawn_as_limit("limit")],
    )


def _oldest() -> Json:
    return lines(
        "Longest wait",
        Says(
            "For how long the head of the line had waited, at each moment. Healthy: a saw with "
            "small teeth.",
            bad=(
                "a slope of one second a second (nobody is granted), or teeth above the dashed minute."
            ),
            then="slots in use at that moment: full is demand, free is a fault.",
        ),
        "s",
        [Query(queries.shared(names.OLDEST_WAIT), "head of the line")],
        thresholds=OLDEST_SECONDS,
    )


def _endings() -> Json:
    return lines(
        "How waits end",
        Says(
            "Callers a minute whose wait ended, by how: granted; timeout (your time ended); "
            "cancelled (they hung up); evicted (an operator took them out); error (Redis out of"
            " reach).",
            bad="anything but granted that grows.",
            then="errors, the backend below; the others, the wait quantiles.",
        ),
        "cpm",
        [Query(queries.per_minute(queries.ended("outcome")), "{{outcome}}")],
        bars=True,
        overrides=[NOTHING_HAPPENED],
    )


def _hold_endings() -> Json:
    return lines(
        "How holds end",
        Says(
            "Slots a minute that were given back, by how: released; error (the body raised); "
            "lost (the lease lapsed while the call went on); evicted.",
            bad=(
                "any lost: that instance could not reach Redis for a whole lease, or its event "
                "loop stood still."
            ),
            then="lost in the log names call and instance.",
        ),
        "cpm",
        [Query(queries.per_minute(queries.held("outcome")), "{{outcome}}")],
        bars=True,
        overrides=[NOTHING_HAPPENED],
    )


def _positions() -> Json:
    return lines(
        "Place in the line on entering",
        Says(
            "The place that callers got when they entered; 0 is a slot at once.",
            bad="a median above 0 for long: most callers have to wait.",
            then="demand against capacity on the Overview.",
        ),
        "none",
        [
            Query(queries.position_quantile(quantile), f"p{100 * quantile:g}")
            for quantile in (0.5, 0.95)
        ],
    )


def _hold_quantiles() -> Json:
    return lines(
        "How long a slot is held",
        Says(
            "Length of the calls: mean, median and 95th percentile.",
            bad=(
                "a mean that rises: the same slots then take fewer calls, which looks like "
                "demand and is not."
            ),
            then="a diamond is a call; its trace shows what the body did in that time.",
        ),
        "s",
        [
            Query(queries.mean_hold(ALL), "mean"),
            *(
                Query(queries.hold_quantile(quantile), f"p{100 * quantile:g}", exemplars=True)
                for quantile in (0.5, 0.95)
            ),
        ],
    )


def _waiting_at() -> Json:
    return lines(
        "Waiting, by instance",
        Says(
            "Calls of each instance that wait.",
            bad=(
                "one that holds most of the line for long: the load balancer is uneven, or that"
                " instance does not hang up."
            ),
            then="its log.",
        ),
        "none",
        [Query(queries.waiting("instance"), "{{instance}}")],
    )


def _holding_at() -> Json:
    return lines(
        "Holding, by instance",
        Says(
            "Calls of each instance that hold a slot.",
            bad=(
                "a flat line that does not move while others wait: a body that never ends keeps"
                " its slot."
            ),
            then="entries() names the calls; evict() takes one out.",
        ),
        "none",
        [Query(queries.holding("instance"), "{{instance}}")],
    )


def _served_at() -> Json:
    return lines(
        "Answered a minute, by instance",
        Says(
            "Callers a minute who were granted a slot, by the instance that has them.",
            bad="one at zero while the others answer.",
            then="whether it gets calls at all (the load balancer), then its operations.",
        ),
        "cpm",
        [
            Query(
                queries.per_minute(queries.ended("instance", queries.STEP, 'outcome="granted"')),
                "{{instance}}",
            )
        ],
    )


def _quantile_at() -> Json:
    return lines(
        "Wait, 95th percentile by instance",
        Says(
            "The line is one for all instances, so they should not differ.",
            bad="one above the others for long: it learns late that it is next.",
            then="its heartbeat and `enter` latency, below.",
        ),
        "s",
        [Query(queries.wait_quantile(0.95, "instance"), "{{instance}}", exemplars=True)],
        thresholds=ANSWER_SECONDS,
    )


def _operations() -> Json:
    return lines(
        "Operation latency, p99",
        Says(
            "The slowest hundredth of each operation on the backend, over all queues of the "
            "chosen instances; `wait`, which lasts as long as the line, is left out.",
            bad="above 50 ms (dashed).",
            then=(
                "all slow is Redis or the network; one instance alone (choose it above) is its "
                "event loop."
            ),
        ),
        "s",
        [Query(queries.operation_quantile(0.99, "operation"), "{{operation}}")],
        thresholds=OPERATION_SECONDS,
    )


def _operation_rate() -> Json:
    return lines(
        "Operations, by how they ended",
        Says(
            "Operations on the backend a second, over all queues of the chosen instances.",
            bad=(
                "unavailable or error, at any rate. timeout, cancelled and evicted are callers,"
                " not faults."
            ),
            then="Redis' own log; `backend_unavailable` in the log below names the cause.",
        ),
        "ops",
        [Query(queries.operations("operation, outcome"), "{{operation}}: {{outcome}}")],
        bars=True,
        overrides=[NOTHING_HAPPENED],
    )


def _log() -> Json:
    return log_lines(
        "Log of the queue",
        Says(
            "What the instances logged about this queue, newest first; level INFO is needed.",
            bad="lost, reclaimed, error, or limit_changed that nobody ordered.",
            then=(
                "a line that is opened up shows its item_id, for Follow a call, and its trace_id, "
                "which leads to the trace. Empty? Choose the service, above."
            ),
        ),
        queries.log_of_queue(),
    )
