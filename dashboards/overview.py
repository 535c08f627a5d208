"""Overview: are callers served in time; if not, where, and is it demand, slots or a fault?"""

from __future__ import annotations

from dashboards import frame, queries
from dashboards.panels import (
    NOTHING_HAPPENED,
    Column,
    Json,
    Query,
    Row,
    Says,
    any_is_bad,
    any_needs_a_look,
    bad_above,
    bad_below,
    board,
    drawn_as_limit,
    label_table,
    lines,
    stat,
    table,
)
from genesis.observability import names

# What a call centre takes for good: 80 % within 20 s, at most 5 % who give up, agents busy for at most
# 85 % of their time. The second figure of each pair is where it is lost.
SERVICE_LEVEL = bad_below(queries.SERVICE_LEVEL_TARGET, 0.6)
ABANDONS = bad_above(0.05, 0.10)
OCCUPANCY = bad_above(0.85, 0.95)
ANSWER_SECONDS = bad_above(20, 60)
OLDEST_SECONDS = bad_above(60, 300)
LOAD = bad_above(0.9, 1.0)
OPERATION_SECONDS = bad_above(0.05, 0.5)

ALL, SHOWN = "", queries.SHOWN


def overview() -> Json:
    return board(
        frame.OVERVIEW,
        frame.TITLES[frame.OVERVIEW],
        "Are callers served in time? If not: in which queue, and is it demand, too few slots, or a "
        "fault? Plain text is healthy; orange asks for a look, red for a deed.",
        variables=[
            frame.DATASOURCE,
            frame.JOB,
            frame.INSTANCE,
            frame.queue_variable(several=True),
        ],
        links=frame.others(frame.OVERVIEW),
        since="now-30m",
        rows=[
            "Are callers served in time?",
            Row(4, [(3, panel) for panel in _in_one_look()]),
            "Where not?",
            Row(8, [(16, _queues()), (8, _alerts())]),
            "Is it demand, too few slots, or a fault?",
            Row(8, [(8, _demand()), (8, _slots()), (8, _faults())]),
            "How it went",
            Row(8, [(6, _service_level()), (6, _burn()), (6, _waiting()), (6, _gave_up())]),
            "Instances and the backend",
            Row(8, [(12, _instances()), (6, _operations()), (6, _disruptions())]),
        ],
    )


def _in_one_look() -> list[Json]:
    return [
        stat(
            "Within 20 s, of all",
            Says(
                "Service level, strict: callers answered within 20 s, of ALL whose wait ended "
                "in the time shown, also those who gave up, timed out, were evicted or met an "
                "error.",
                bad="below 80 % (the 80/20 of call centres); red below 60 %.",
                then="the table below says in which queue, the three panels under it why.",
            ),
            "percentunit",
            [Query(queries.service_level_strict(ALL, SHOWN), now=True)],
            thresholds=SERVICE_LEVEL,
            empty="no calls",
            decimals=1,
        ),
        stat(
            "Within 20 s, lenient",
            Says(
                "Service level, lenient: as the strict one, but callers who gave up or timed "
                "out within the first 20 s are left out of the count: they did not give you the"
                " time.",
                bad="below 80 %.",
                then=(
                    "if it is good while the strict one is bad, people hang up early: look at "
                    "the announcement and at timeouts below 20 s, before you add slots."
                ),
            ),
            "percentunit",
            [Query(queries.service_level_lenient(ALL, SHOWN), now=True)],
            thresholds=SERVICE_LEVEL,
            empty="no calls",
            decimals=1,
        ),
        stat(
            "Average speed of answer",
            Says(
                "Mean wait of the callers who were answered in the time shown.",
                bad=(
                    "above 20 s; red above a minute. It says nothing of those who gave up: read"
                    " it with the abandon rate."
                ),
                then="the wait quantiles of the slowest queue, on its own dashboard.",
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
                "Callers who left the line without an answer (they hung up, or their timeout ended), "
                "of all whose wait ended in the time shown; who gave up within 5 s counts in neither.",
                bad="above 5 %; red above 10 %.",
                then="compare demand with capacity below.",
            ),
            "percentunit",
            [Query(queries.abandon_rate(ALL, SHOWN), now=True)],
            thresholds=ABANDONS,
            empty="no calls",
            decimals=1,
        ),
        stat(
            "Occupancy now",
            Says(
                "Slots in use, of the slots of those chosen queues that have calls at this moment; an "
                "idle queue reports none.",
                bad=(
                    "above 85 % for long, a small peak will then make a line; red above 95 %. One call "
                    "in a queue of one slot is 100 % and no harm: it is bad only if callers wait."
                ),
                then=("more slots (set_limit), or fewer calls; a queue by itself is in the table."),
            ),
            "percentunit",
            [Query(queries.occupancy_of_all())],
            thresholds=OCCUPANCY,
            empty="idle",
            decimals=0,
        ),
        stat(
            "Longest wait now",
            Says(
                "For how long the caller who has waited longest has been waiting, over all queues.",
                bad="above a minute; red above five.",
                then=("if it climbs second by second, that line does not move: see the next number."),
            ),
            "s",
            [Query(queries.longest_wait())],
            thresholds=OLDEST_SECONDS,
            empty="idle",
            decimals=0,
        ),
        stat(
            "Stuck queues",
            Says(
                "Queues in which callers wait although slots are free.",
                bad=(
                    "any, for longer than a lease (15 s). For half a lease after Redis lost its data "
                    "it is on purpose: the old order is restored first."
                ),
                then="the queue's log, then the health of Redis below.",
            ),
            "none",
            [Query(queries.how_many(queries.stuck()), now=True)],
            thresholds=any_is_bad(),
            decimals=0,
        ),
        stat(
            "Instances down",
            Says(
                "Instances that Prometheus knows of and cannot reach.",
                bad="any. Its callers are cut off; what it held is given on within the lease.",
                then="the table of instances, and that process' own log.",
            ),
            "none",
            [Query(queries.down(), now=True)],
            thresholds=any_is_bad(),
            decimals=0,
        ),
    ]


def _queues() -> Json:
    return table(
        "Queues",
        Says(
            "One line for each queue; service level, speed of answer, abandons, load and faults"
            " over the time shown, the rest as it is now. A cell is coloured only when it is "
            "bad. Load = the slots that the arriving calls need, of those there are (arrivals x"
            " mean hold / limit): above 1 the line grows for as long as that lasts.",
            bad="any coloured cell.",
            then=(
                "bad with a load above 0.9 is demand or too few slots; bad with a low load, or "
                "with Stuck or Faults, is a fault. A click on a name opens that queue."
            ),
        ),
        "queue",
        "Queue",
        [
            Column(
                "In 20 s, of all",
                queries.service_level_strict(window=SHOWN),
                "percentunit",
                SERVICE_LEVEL,
                0,
            ),
            Column(
                "lenient", queries.service_level_lenient(window=SHOWN), "percentunit", SERVICE_LEVEL, 0
            ),
            Column("Answered in", queries.speed_of_answer(window=SHOWN), "s", ANSWER_SECONDS, 1),
            Column("Gave up", queries.abandon_rate(window=SHOWN), "percentunit", ABANDONS, 1),
            Column("Load", queries.load(window=SHOWN), "percentunit", LOAD, 0),
            Column("Occupancy", queries.occupancy(), "percentunit", OCCUPANCY, 0),
            Column("Slots", queries.shared(names.LIMIT), "none", None, 0),
            Column("Waiting", queries.waiting(), "none", None, 0),
            Column("Longest", queries.shared(names.OLDEST_WAIT), "s", OLDEST_SECONDS, 0),
            Column("Stuck", queries.stuck(), "none", any_is_bad(), 0),
            Column("Faults", queries.faults_of_queues(), "none", any_needs_a_look(0.5), 0),
        ],
        link=frame.TO_QUEUE,
        sort_by="In 20 s, of all",
        empty="no queue has had a call",
    )


def _alerts() -> Json:
    return label_table(
        "Alerts that fire",
        Says(
            "The alerts of the chosen jobs that fire at this moment, on whichever queue and instance.",
            bad="any.",
            then="its page in dashboards/runbooks, which the alert names.",
        ),
        Query(queries.alerts()),
        {"alertname": "Alert", "severity": "Severity", "queue": "Queue", "instance": "Instance"},
        link=("Queue", frame.TO_QUEUE),
        empty="no alert fires",
    )


def _demand() -> Json:
    return lines(
        "Demand: calls that come, and that the slots can take",
        Says(
            "Calls a minute that entered the line, and (dashed) how many the slots can take at the "
            "present length of a call.",
            bad="the solid line above the dashed one: the line of callers grows.",
            then=(
                "if the solid line rose, it is demand. If the dashed one fell, either the limit was "
                "lowered or calls last longer: the next panel, and the hold quantiles of the queue, "
                "tell which."
            ),
        ),
        "cpm",
        [
            Query(queries.per_minute(queries.arriving(ALL)), "calls that come"),
            Query(queries.per_minute(queries.capacity()), "the slots can take"),
        ],
        overrides=[drawn_as_limit("the slots can take")],
    )


def _slots() -> Json:
    return lines(
        "Slots: in use, and how many there are",
        Says(
            "Slots in use over all instances, and (dashed) the limits in force, summed over the"
            " chosen queues.",
            bad=(
                "the two together for long, too few slots; or waiters (the panel below) while "
                "they are apart, a fault."
            ),
            then="raise the limit of the queue if there are agents for it.",
        ),
        "none",
        [
            Query(queries.in_all(names.IN_USE), "in use"),
            Query(queries.in_all(names.LIMIT), "slots"),
        ],
        overrides=[drawn_as_limit("slots")],
    )


def _faults() -> Json:
    return lines(
        "Faults",
        Says(
            "What went wrong, by kind: Redis out of reach or emptied; waiters and slots taken "
            "back from dead instances; slots lost while their call went on; callers turned away"
            " with an error; telemetry that failed; call sites that disagree on a limit. "
            "Healthy: an empty panel.",
            bad="any bar.",
            then=("Redis first, then the instance that died; the runbook of the alert has the rest."),
        ),
        "none",
        [
            Query(queries.disruptions(), "Redis: {{reason}}"),
            Query(queries.reclaimed("state"), "reclaimed, {{state}}"),
            Query(queries.lost(ALL), "slots lost"),
            Query(queries.failed(ALL), "callers met an error"),
            Query(queries.telemetry_errors(), "telemetry: {{sink}}"),
            Query(queries.limit_disagreements(ALL), "limits disagree"),
        ],
        bars=True,
        overrides=[NOTHING_HAPPENED],
    )


def _service_level() -> Json:
    return lines(
        "Service level by queue",
        Says(
            "Callers answered within 20 s, of all whose wait ended, by queue.",
            bad=(
                "below the dashed 80 % for more than a few minutes; a single dip of a quiet "
                "queue is one caller."
            ),
            then="open that queue.",
        ),
        "percentunit",
        [Query(queries.service_level_strict(), "{{queue}}")],
        thresholds=SERVICE_LEVEL,
        most=1,
    )


def _burn() -> Json:
    return lines(
        "Service level, burn of an hour",
        Says(
            "How many times faster than a service level of 80 % allows callers miss the 20 s, over the "
            "hour before each moment: 1 just meets it, 5 is nobody answered in time. Recorded by the "
            "rules, and what the alert GenesisServiceLevelBurn looks at.",
            bad="above 1.4 for hours; above 2.5 (half of the callers) at once.",
            then="the table of queues, above. Empty: the rules are not loaded.",
        ),
        "none",
        [Query(queries.service_level_burn(), "{{queue}}")],
        thresholds=bad_above(1.4, 2.5),
    )


def _waiting() -> Json:
    return lines(
        "Callers waiting by queue",
        Says(
            "Callers in the line, as the instances that hold their calls count them.",
            bad="a line that grows without falling again.",
            then="its load, in the table.",
        ),
        "none",
        [Query(queries.waiting(), "{{queue}}")],
    )


def _gave_up() -> Json:
    return lines(
        "Abandon rate by queue",
        Says(
            "Callers who left without an answer, of all whose wait ended, by queue; who gave up within "
            "5 s counts in neither.",
            bad="above the dashed 5 %.",
            then=(
                "how long they had waited, on the queue's dashboard; a wall at one length is a "
                "timeout of yours, a slope is the callers' patience."
            ),
        ),
        "percentunit",
        [Query(queries.abandon_rate(), "{{queue}}")],
        thresholds=ABANDONS,
        most=1,
    )


def _instances() -> Json:
    return table(
        "Instances",
        Says(
            "One line for each instance: whether Prometheus reaches it, the calls it has now, "
            "its own service level and the slow end of its Redis operations over the time "
            "shown, and its faults.",
            bad="an instance that stands out.",
            then=(
                "if one has slow operations and the others do not, it is that host or its "
                "network; if all have, it is Redis. A click shows that instance alone."
            ),
        ),
        "instance",
        "Instance",
        [
            Column("Up", queries.up(), "none", bad_below(1, 1), 0),
            Column("Waiting", queries.waiting("instance"), "none", None, 0),
            Column("Holding", queries.holding("instance"), "none", None, 0),
            Column(
                "In 20 s, of all",
                queries.service_level_strict("instance", SHOWN),
                "percentunit",
                SERVICE_LEVEL,
                0,
            ),
            Column(
                "Redis p99",
                queries.operation_quantile(0.99, "instance", SHOWN),
                "s",
                OPERATION_SECONDS,
                1,
            ),
            Column(
                "Disruptions",
                queries.disruptions("instance", SHOWN),
                "none",
                any_needs_a_look(0.5),
                0,
            ),
            Column(
                "Telemetry errors",
                queries.telemetry_errors("instance", SHOWN),
                "none",
                any_needs_a_look(0.5),
                0,
            ),
        ],
        link=frame.TO_INSTANCE,
        empty="no instance",
    )


def _operations() -> Json:
    return lines(
        "Backend operations, p99",
        Says(
            "The slowest hundredth of each operation on the backend; `wait`, which lasts as "
            "long as the line, is left out.",
            bad="above 50 ms (dashed); callers feel it from half a second on.",
            then=("all operations slow is Redis or the network; heartbeat alone is a busy event loop."),
        ),
        "s",
        [Query(queries.operation_quantile(0.99, "operation"), "{{operation}}")],
        thresholds=OPERATION_SECONDS,
    )


def _disruptions() -> Json:
    return lines(
        "Operations that failed",
        Says(
            "Operations on the backend a second that ended neither well nor by the caller's own"
            " doing: Redis out of reach, or an error. Healthy: an empty panel.",
            bad="any.",
            then="Redis' log and its memory policy (noeviction), then the network between.",
        ),
        "ops",
        [
            Query(
                queries.operations("operation, outcome", 'outcome=~"unavailable|error"'),
                "{{operation}}: {{outcome}}",
            )
        ],
        bars=True,
        overrides=[NOTHING_HAPPENED],
    )
