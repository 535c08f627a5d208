"""Overview: are callers served in time? If not: where, and is the cause demand, slots or a fault?"""

from __future__ import annotations

from dashboards import fleet, frame, instances, promql, queries, tiles
from dashboards.board import Row, board
from dashboards.instances import NONE_SEEN, OPERATION_MILLISECONDS
from dashboards.panels import (
    CLOCK,
    MILLISECONDS,
    SECONDS,
    Description,
    Json,
    Query,
    any_is_bad,
    any_needs_a_look,
    bad_above,
    bad_below,
    coloured,
    drawn_as_limit,
    lines,
)
from dashboards.tables import Column, label_table, table
from dashboards.tiles import ABANDONS, OCCUPANCY, SERVICE_LEVEL, WAIT_SECONDS
from genesis.observability import names

LOAD = bad_above(0.9, 1.0)

ALL, RECENT, SHOWN = "", promql.RECENT, promql.SHOWN


def overview() -> Json:
    return board(
        frame.OVERVIEW,
        frame.TITLES[frame.OVERVIEW],
        "Are callers served in time? If not: in which queue, and is it demand, too few slots, or a "
        "fault? Plain text is healthy; orange: investigate; red: act now.",
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
            Row(
                4,
                [
                    (4, tiles.in_time()),
                    (4, tiles.gave_up()),
                    (4, tiles.longest_wait()),
                    (4, tiles.fullest()),
                    (4, tiles.refused()),
                    (4, tiles.in_time_shown()),
                ],
            ),
            "Is there a fault?",
            Row(
                4,
                [
                    (4, tiles.backend()),
                    (4, tiles.instances()),
                    (4, tiles.reclaimed()),
                    (4, tiles.longest_hold()),
                    (4, tiles.stuck()),
                    (4, tiles.paused()),
                ],
            ),
            "Where?",
            Row(7, [(24, _queues())]),
            Row(7, [(12, _alerts()), (12, _instances())]),
            "Is it demand, too few slots, or a fault?",
            Row(8, [(8, _demand()), (8, _slots()), (8, _faults())]),
            "How it went",
            Row(8, [(6, _service_level()), (6, _burn()), (6, _waiting()), (6, _gave_up())]),
            "The backend",
            Row(8, [(8, panel) for panel in instances.of_the_backend()]),
        ],
    )


def _queues() -> Json:
    return table(
        "Queues",
        Description(
            "One line for each queue, as it is now or over the last five minutes, but for 'Shown', "
            "which "
            "is the service level over the time shown, and the faults. A cell is coloured only when "
            "it is "
            "bad. Load = the slots that the arriving calls need, of those there are (arrivals x mean "
            "hold "
            "/ limit): above 1 the line grows for as long as that lasts.",
            bad="any coloured cell.",
            then=(
                "bad with a load above 0.9 is demand or too few slots; bad with a low load, or with "
                "Stuck, a long hold or Faults, is a fault. A click on a name opens that queue."
            ),
        ),
        "queue",
        "Queue",
        [
            Column(
                "In 20 s", queries.service_level_strict(window=RECENT), "percentunit", SERVICE_LEVEL, 0
            ),
            Column(
                "Shown", queries.service_level_strict(window=SHOWN), "percentunit", SERVICE_LEVEL, 0
            ),
            Column("Gave up", queries.abandon_rate(window=RECENT), "percentunit", ABANDONS, 0),
            Column("Served in", queries.speed_of_answer(window=RECENT), SECONDS, WAIT_SECONDS, 1),
            Column("Load", queries.load(), "percentunit", LOAD, 0),
            Column("In use", queries.occupancy_and_waiters(), "percentunit", OCCUPANCY, 0),
            Column("Slots", queries.limit(), "none", None, 0),
            Column("Waiting", queries.waiting(), "none", None, 0),
            Column("Max wait", queries.shared(names.OLDEST_WAIT), SECONDS, WAIT_SECONDS, 0),
            Column("Expected", queries.shared(names.EXPECTED_WAIT), SECONDS, WAIT_SECONDS, 0),
            Column("Max hold", queries.shared(names.OLDEST_HOLD), CLOCK, tiles.HOLD_SECONDS, 0),
            Column("Too long", queries.too_long(), CLOCK, any_needs_a_look(), 0),
            Column("Stuck", queries.stuck(), "none", any_is_bad(), 0),
            Column("Faults", queries.faults_of_queues(), "none", any_needs_a_look(0.5), 0),
        ],
        link=frame.TO_QUEUE,
        sort_by="In 20 s",
        empty="no queue has had a call",
    )


def _alerts() -> Json:
    return label_table(
        "Alerts that fire",
        Description(
            "The alerts of the chosen jobs that fire at this moment, on whichever queue and instance, "
            "and "
            "for how long it has been so.",
            bad="any.",
            then="its page in dashboards/runbooks, which the alert names.",
        ),
        Query(fleet.alerts()),
        {"alertname": "Alert", "severity": "Severity", "queue": "Queue", "instance": "Instance"},
        value="For",
        unit=CLOCK,
        widths={"Alert": 205, "Severity": 75, "For": 75},
        colours=("Severity", {"critical": "red", "warning": "orange", "info": "blue"}),
        link=("Queue", frame.TO_QUEUE),
        empty="no alert fires",
    )


def _demand() -> Json:
    return lines(
        "Demand: calls that come, and that the slots can take",
        Description(
            "Calls a minute that entered the line, and (dashed) how many the slots can take at the "
            "mean length of the calls of ten minutes.",
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
        empty="no calls",
        overrides=[drawn_as_limit("the slots can take")],
    )


def _slots() -> Json:
    return lines(
        "Slots: in use, and how many there are",
        Description(
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
            Query(queries.in_use_of_all(), "in use"),
            Query(queries.limit_of_all(), "slots"),
        ],
        empty="no calls",
        overrides=[drawn_as_limit("slots")],
    )


def _faults() -> Json:
    return lines(
        "Faults",
        Description(
            "What went wrong with calls, by kind: taken back from dead instances; slots lost while "
            "their "
            "call went on; callers who met an error; telemetry that failed; call sites that disagree "
            "on a "
            "limit. Each is counted once, in the minute that begins with the bar. Healthy: no bar.",
            bad="any bar.",
            then="Redis first, then the instance that died; the runbook of the alert has the rest.",
        ),
        "none",
        [
            Query(queries.reclaimed("state"), "reclaimed, {{state}}"),
            Query(queries.lost(ALL), "slots lost"),
            Query(queries.failed(ALL), "callers met an error"),
            Query(fleet.telemetry_errors(), "telemetry: {{sink}}"),
            Query(queries.limit_disagreements(ALL), "limits disagree"),
        ],
        bars="counts",
        empty=NONE_SEEN,
        overrides=[
            coloured("^(slots lost|callers met an error)$", "red"),
            coloured("^reclaimed, holding$", "dark-orange"),
            coloured("^reclaimed, waiting$", "orange"),
            coloured("^telemetry", "purple"),
            coloured("^limits", "yellow"),
        ],
    )


def _service_level() -> Json:
    return lines(
        "Service level by queue",
        Description(
            "Callers answered within 20 s, of all whose wait ended, by queue.",
            bad=(
                "below the dashed 80 % for more than a few minutes; a single dip of a quiet "
                "queue is one caller."
            ),
            then="open that queue.",
        ),
        "percentunit",
        [Query(queries.service_level_strict(), "{{queue}}")],
        thresholds=bad_below(queries.SERVICE_LEVEL_TARGET, 0.6, from_zero=False),
        most=1,
        empty="no calls",
    )


def _burn() -> Json:
    return lines(
        "Service level, burn of an hour",
        Description(
            "How many times faster than a service level of 80 % allows callers miss the 20 s, over the "
            "hour before each moment: 1 just meets it, 5 is nobody answered in time. Recorded by the "
            "rules, and what the alert GenesisServiceLevelBurn looks at.",
            bad="above 1.4 for hours; above 2.5 (half of the callers) at once.",
            then="the table of queues, above. Empty: the rules are not loaded.",
        ),
        "none",
        [Query(queries.service_level_burn(), "{{queue}}")],
        thresholds=bad_above(1.4, 2.5),
        empty="no calls",
    )


def _waiting() -> Json:
    return lines(
        "Callers waiting by queue",
        Description(
            "Callers in the line, as the instances that hold their calls count them.",
            bad="a line that grows without falling again.",
            then="its load, in the table.",
        ),
        "none",
        [Query(queries.waiting(), "{{queue}}")],
        empty="no calls",
    )


def _gave_up() -> Json:
    return lines(
        "Abandon rate by queue",
        Description(
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
        empty="no calls",
    )


def _instances() -> Json:
    return table(
        "Instances",
        Description(
            "One line for each instance: whether Prometheus reaches it, the calls it has now, its own "
            "service level, the slow end of its operations on the backend, whether it reaches Redis "
            "(the words of the tile), and its failures of telemetry over the time shown.",
            bad="an instance that stands out.",
            then=(
                "if one has slow operations and the others do not, it is that host or its "
                "network; if all have, it is Redis. A click shows that instance alone."
            ),
        ),
        "instance",
        "Instance",
        [
            Column("Up", fleet.up(), "none", bad_below(1, 1), 0, 45),
            Column("Waiting", queries.waiting("instance"), "none", None, 0, 70),
            Column("Holding", queries.holding("instance"), "none", None, 0, 70),
            Column(
                "In 20 s",
                queries.service_level_strict("instance", RECENT),
                "percentunit",
                SERVICE_LEVEL,
                0,
                70,
            ),
            Column(
                "p99",
                fleet.operation_milliseconds(0.99, "instance", RECENT),
                MILLISECONDS,
                OPERATION_MILLISECONDS,
                0,
                70,
            ),
            Column(
                "Redis",
                fleet.backend_state("instance"),
                "none",
                tiles.BACKEND,
                width=82,
                words=tiles.BACKEND_WORDS,
            ),
            Column(
                "Telemetry",
                fleet.telemetry_errors("instance", SHOWN),
                "none",
                any_needs_a_look(0.5),
                0,
                85,
            ),
        ],
        link=frame.TO_INSTANCE,
        empty="no instance",
    )
