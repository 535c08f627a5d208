"""The tiles in the first rows of Overview and Queue: the current state, or the last five minutes."""

from __future__ import annotations

from dashboards import fleet, promql, queries
from dashboards.panels import (
    ACT,
    CLOCK,
    LOOK,
    PLAIN,
    SECONDS,
    Description,
    Json,
    Query,
    any_is_bad,
    any_needs_a_look,
    bad_above,
    bad_below,
    for_series,
    stat,
    steps,
)

# What a call centre takes for good: 80 % within 20 s, at most 5 % who give up. The second figure of
# each pair is where it is lost.
SERVICE_LEVEL = bad_below(queries.SERVICE_LEVEL_TARGET, 0.6)
ABANDONS = bad_above(0.05, 0.10)
OCCUPANCY = any_needs_a_look(queries.FULL)
WAIT_SECONDS = bad_above(20, 60)
HOLD_SECONDS = any_is_bad(queries.OLD_SECONDS)
UP = steps((PLAIN, None), (ACT, 0), (PLAIN, 1))
BACKEND = steps((PLAIN, None), (LOOK, fleet.BACKEND_DISRUPTED), (ACT, fleet.BACKEND_AWAY))
BACKEND_WORDS: dict[float, str] = {
    fleet.BACKEND_UNUSED: "unused",
    fleet.BACKEND_FINE: "ok",
    fleet.BACKEND_DISRUPTED: "disrupted",
    fleet.BACKEND_AWAY: "fails",
}

ALL, RECENT, SHOWN = "", promql.RECENT, promql.SHOWN
NO_CALLS = {float(fleet.NOBODY): "no calls"}
NOT_KNOWN = "unknown"  # no instances, or calls that wait while the backend is away


def _now(expr: str, legend: str = "") -> Query:
    return Query(expr, legend, now=True)


def in_time() -> Json:
    return stat(
        "In 20 s, last 5 min",
        Description(
            "Service level: callers who got a slot within 20 s, of all whose wait ended in the last "
            "five "
            "minutes, also those who gave up, timed out, were evicted or met an error.",
            bad="below 80 % (the 80/20 of call centres); red below 60 %.",
            then="which queue, in the table; and whether the tiles below have the cause.",
        ),
        "percentunit",
        [_now(fleet.or_nobody(queries.service_level_strict(ALL, RECENT)))],
        thresholds=SERVICE_LEVEL,
        words=NO_CALLS,
        decimals=0,
    )


def in_time_shown() -> Json:
    return stat(
        "In 20 s, time shown",
        Description(
            "The same over the whole time shown.",
            bad="below 80 %; red below 60 %. It says how it was, not how it is.",
            then="'Service level by queue' says when it was bad.",
        ),
        "percentunit",
        [_now(fleet.or_nobody(queries.service_level_strict(ALL, SHOWN)))],
        thresholds=SERVICE_LEVEL,
        words=NO_CALLS,
        decimals=0,
    )


def gave_up() -> Json:
    return stat(
        "Gave up, last 5 min",
        Description(
            "Callers who left without a slot (they hung up, or their timeout ended), of all whose wait "
            "ended in the last five minutes. Callers who gave up within 5 s are not counted.",
            bad="above 5 %; red above 10 %.",
            then="the waits of those who gave up. All of one length: a timeout that you set.",
        ),
        "percentunit",
        [_now(fleet.or_nobody(queries.abandon_rate(ALL, RECENT)))],
        thresholds=ABANDONS,
        words=NO_CALLS,
        decimals=0,
    )


def refused() -> Json:
    return stat(
        "Refused, last 5 min",
        Description(
            "Calls that were turned away because the line was full (`max_waiting`), and are in no "
            "other "
            "number.",
            bad="any: you wanted a limit to the line, and it is reached.",
            then="demand against capacity; or a higher `max_waiting`.",
        ),
        "none",
        [_now(fleet.or_zero(queries.refused(ALL, RECENT, 'reason="full"')))],
        thresholds=any_needs_a_look(0.5),
        decimals=0,
    )


def longest_wait() -> Json:
    return stat(
        "Longest wait now",
        Description(
            "For how long the caller who has waited longest has been waiting.",
            bad="above 20 s; red above a minute.",
            then="if it climbs second by second nobody is granted: full slots, a stuck queue, or "
            "Redis.",
        ),
        SECONDS,
        [_now(fleet.or_zero_unless(queries.waiting(ALL), queries.longest_wait()))],
        thresholds=WAIT_SECONDS,
        empty=NOT_KNOWN,
        decimals=0,
    )


def expected_wait() -> Json:
    return stat(
        "Expected wait",
        Description(
            "How long a caller who enters now would wait, of the queue with the longest.",
            bad="above 20 s; red above a minute.",
            then="more slots, or tell the callers. 'unknown': nobody waits, or too few holds have "
            "ended.",
        ),
        SECONDS,
        [_now(fleet.or_nobody(queries.expected_wait()))],
        thresholds=WAIT_SECONDS,
        words={float(fleet.NOBODY): "unknown"},
        decimals=0,
    )


def fullest() -> Json:
    return stat(
        "Fullest queue now",
        Description(
            "Slots in use, of those there are, of the queue that has the fewest left.",
            bad="all of them in use while somebody waits. All in use and nobody waiting is no harm.",
            then="more slots (set_limit) or fewer calls; the table says which queue.",
        ),
        "percentunit",
        [_now(fleet.or_zero(queries.fullest()))],
        thresholds=OCCUPANCY,
        decimals=0,
    )


def waiting() -> Json:
    return stat(
        "Waiting now",
        Description(
            "Callers in this line, as the instances that have their calls count them.",
            bad="if it does not fall again.",
            then="Depth, below.",
        ),
        "none",
        [_now(fleet.or_zero(queries.waiting(ALL)))],
        decimals=0,
    )


def backend() -> Json:
    return stat(
        "Redis",
        Description(
            "Whether the instances reach the backend, also while nobody calls: 'fails' while one of "
            "them does not, or while more than a twentieth of its operations fail; 'disrupted' if it "
            "was out of reach, refused something or lost its data within the last five minutes; "
            "'unused' if nobody has called yet.",
            bad="red: new calls get an error, and after a lease those who wait do, too.",
            then="which instances, in their table; 'Redis: disruptions' says why; the runbook is "
            "GenesisBackendUnavailable.",
        ),
        "none",
        [_now(fleet.backend_state())],
        thresholds=BACKEND,
        words=BACKEND_WORDS,
    )


def instances() -> Json:
    return stat(
        "Instances now",
        Description(
            "Instances that Prometheus reaches, and those that it knows of and does not reach.",
            bad="any that is down: its callers are cut off; what it held is given on within the lease.",
            then="the table of instances, and that process' own log. 'no data': nothing is scraped.",
        ),
        "none",
        [_now(fleet.up_count(), "up"), _now(fleet.down_count(), "down")],
        thresholds=UP,
        empty_is_bad=True,
        decimals=0,
        overrides=[for_series("down", thresholds=any_is_bad())],
    )


def stuck() -> Json:
    return stat(
        "Stuck queues",
        Description(
            "Queues in which callers wait although slots are free.",
            bad="any, for longer than a lease (15 s). For half a lease after Redis lost its data it "
            "is on "
            "purpose: the old order is restored first.",
            then="the queue's log, then Redis.",
        ),
        "none",
        [_now(fleet.or_zero_unless(queries.waiting(ALL), f"count({queries.stuck()})"))],
        thresholds=any_is_bad(),
        empty=NOT_KNOWN,
        decimals=0,
    )


def longest_hold() -> Json:
    return stat(
        "Longest hold now",
        Description(
            "For how long the call that has held its slot longest has held it; and in how many queues "
            "that "
            "is far too long: more than a minute and 20 times the mean, or more than an hour.",
            bad="any that is too long: a handler that never leaves its slot; red after an hour.",
            then="`genesis entries QUEUE` names the call and its instance; `genesis evict` frees the "
            "slot.",
        ),
        CLOCK,
        [
            _now(fleet.or_zero_unless(queries.holding(ALL), queries.longest_hold()), "longest"),
            _now(
                fleet.or_zero_unless(queries.holding(ALL), f"count({queries.too_long()})"), "too long"
            ),
        ],
        thresholds=HOLD_SECONDS,
        empty=NOT_KNOWN,
        overrides=[
            for_series("too long", unit="none", decimals=0, thresholds=any_needs_a_look()),
        ],
    )


def reclaimed() -> Json:
    return stat(
        "Reclaimed, last 5 min",
        Description(
            "Places and slots that were taken back from instances that died, or were cut off for "
            "longer "
            "than the lease.",
            bad="any: so many calls were cut off. The slots passed on at once.",
            then="which instance: `reclaimed` in the log has its id.",
        ),
        "none",
        [_now(fleet.or_zero(queries.reclaimed(ALL, RECENT)))],
        thresholds=any_needs_a_look(0.5),
        decimals=0,
    )


def paused() -> Json:
    return stat(
        "Paused queues",
        Description(
            "Queues whose limit is 0, so that nobody is granted a slot.",
            bad="one that nobody paused on purpose, or not any more.",
            then="`genesis limit QUEUE none` ends the pause.",
        ),
        "none",
        [_now(fleet.or_zero_unless(queries.waiting(ALL), f"count({queries.paused()})"))],
        thresholds=any_needs_a_look(),
        empty=NOT_KNOWN,
        decimals=0,
    )
