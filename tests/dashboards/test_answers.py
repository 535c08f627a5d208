"""Panels show the right number: a real Prometheus evaluates their expressions over synthetic series."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from dashboards import fleet, promql, queries
from genesis.observability import names
from tests.dashboards.boards import Board
from tests.support.telemetry_names import RUNBOOKS, filled_in, promql_blocks


def counted(name: str, values: str, **labels: str) -> Board:
    pairs = ", ".join(
        f'{key}="{value}"' for key, value in {"job": "pbx", "instance": "a", **labels}.items()
    )
    return {"series": f"{name}{{{pairs}}}", "values": values}


def in_turn() -> list[Board]:
    """Ten queues of one slot; in each a call of 5 minutes every 10, one queue after the other."""
    series = []
    for place in range(10):
        queue = f"q{place}"
        begun = [max(0, at - 4 * place + 40) // 40 for at in range(120)]
        ended = [max(0, at - 4 * place + 20) // 40 for at in range(120)]
        series += [
            counted(names.LIMIT, "1x120", queue=queue, backend="redis"),
            counted(f"{names.POSITION}_count", " ".join(map(str, begun)), queue=queue),
            counted(f"{names.HOLD_SECONDS}_count", " ".join(map(str, ended)), queue=queue),
            counted(f"{names.HOLD_SECONDS}_sum", " ".join(str(300 * n) for n in ended), queue=queue),
        ]
    return series


# Of ten callers six are answered in 20 s, one later; one hangs up at once, one after 10 s, and one is
# sent away after more than 20 s. The waits of the answered add up to 70 s.
TEN_CALLERS = [
    counted(f"{names.WAIT_SECONDS}_{sample}", f"0+{each}x120", queue="sales", **labels)
    for sample, each, labels in (
        ("count", 7, {"outcome": "granted"}),
        ("sum", 70, {"outcome": "granted"}),
        ("bucket", 6, {"outcome": "granted", "le": "20.0"}),
        ("bucket", 7, {"outcome": "granted", "le": "30.0"}),
        ("count", 2, {"outcome": "cancelled"}),
        ("bucket", 1, {"outcome": "cancelled", "le": "5.0"}),
        ("bucket", 2, {"outcome": "cancelled", "le": "20.0"}),
        ("count", 1, {"outcome": "timeout"}),
        ("bucket", 0, {"outcome": "timeout", "le": "5.0"}),
        ("bucket", 0, {"outcome": "timeout", "le": "20.0"}),
    )
]


# Four slots, one in use; five in the line, two of them of living instances. Seen by two instances.
A_LINE = [
    counted(name, f"{value}x120", queue="sales", instance=instance, **labels)
    for instance in ("a", "b")
    for name, value, labels in (
        (names.IN_USE, 1, {"backend": "redis"}),
        (names.LIMIT, 4, {"backend": "redis"}),
        (names.DEPTH, 5, {"backend": "redis"}),
        (names.OLDEST_WAIT, 9, {"backend": "redis"}),
        (names.WAITING, 1, {}),
    )
]


SALES = '{queue="sales"}'


ONE_UP = [counted("up", "1x120"), counted(names.BUILD_INFO, "1x120", version="1", backend="redis")]


REACHED = counted(names.BACKEND_UP, "1x120", backend="redis")


FAILING = [
    counted(
        f"{names.OPERATION_SECONDS}_count",
        "0+3x120",
        backend="redis",
        operation="enter",
        outcome="unavailable",
    )
]


def held(oldest: int, mean: int) -> list[Board]:
    """A queue whose oldest hold, and whose mean of those that ended, have lasted so many seconds."""
    return [
        counted(names.OLDEST_HOLD, f"{oldest}x120", queue="sales", backend="redis"),
        counted(f"{names.HOLD_SECONDS}_count", "0+1x120", queue="sales", outcome="released"),
        counted(f"{names.HOLD_SECONDS}_sum", f"0+{mean}x120", queue="sales", outcome="released"),
    ]


ANSWERS: dict[str, tuple[str, list[Board], str, float]] = {
    "strict": (queries.service_level_strict(), TEN_CALLERS, SALES, 0.6),
    "lenient": (queries.service_level_lenient(), TEN_CALLERS, SALES, 0.75),
    "abandons": (f"9 * {queries.abandon_rate('')}", TEN_CALLERS, "{}", 2),
    "speed of answer": (queries.speed_of_answer(), TEN_CALLERS, SALES, 10),
    "callers a minute": (queries.per_minute(queries.ended("")), TEN_CALLERS, "{}", 40),
    "no callers, no ratio": (
        f"count({queries.service_level_strict()}) or vector(-1)",
        [counted(f"{names.WAIT_SECONDS}_count", "7x120", queue="sales", outcome="granted")],
        "{}",
        -1,
    ),
    "burn of an hour": (
        queries.service_level_burn(),
        [
            {
                "series": 'job_queue:genesis_service_level:ratio1h{job="pbx", queue="sales"}',
                "values": "0.5x120",
            }
        ],
        '{job="pbx", queue="sales"}',
        2.5,
    ),
    "occupancy": (queries.occupancy(), A_LINE, SALES, 0.25),
    "fullest queue, and callers wait": (queries.fullest(), A_LINE, "{}", 0.251),
    "the line": (queries.depth_everywhere(), A_LINE, "{}", 5),
    "the callers of the instances": (queries.waiting_everywhere(), A_LINE, "{}", 2),
    "a limit that was lowered is not what an instance without calls saw last": (
        queries.occupancy(),
        [
            counted(names.LIMIT, "5x100 2x20", queue="sales", backend="redis"),
            counted(names.DEPTH, "3x120", queue="sales", backend="redis"),
            counted(names.IN_USE, "2x120", queue="sales", backend="redis"),
            counted(names.LIMIT, "5x108 stale", queue="sales", backend="redis", instance="b"),
        ],
        SALES,
        1,
    ),
    "a pause is seen at once, beside an instance without calls": (
        queries.how_many(queries.paused()),
        [
            *ONE_UP,
            counted(names.LIMIT, "5x108 0x12", queue="sales", backend="redis"),
            counted(names.DEPTH, "3x120", queue="sales", backend="redis"),
            counted(names.LIMIT, "5x120", queue="sales", backend="redis", instance="b"),
        ],
        "{}",
        1,
    ),
    "an idle queue has its last limit, and no slot in use": (
        queries.occupancy(),
        [
            counted(names.LIMIT, "4x100 stale", queue="sales", backend="redis"),
            counted(names.HOLDING, "0x120", queue="sales"),
        ],
        SALES,
        0,
    ),
    "0 while an instance is there": (fleet.or_zero(queries.longest_wait()), ONE_UP, "{}", 0),
    "nobody while an instance is there": (
        fleet.or_nobody(queries.service_level_strict("", promql.RECENT)),
        ONE_UP,
        "{}",
        fleet.NOBODY,
    ),
    "neither without one": (
        f"count({fleet.or_zero(queries.longest_wait())}) or vector(-2)",
        [counted("up", "1x60 0x60"), *ONE_UP[1:]],
        "{}",
        -2,
    ),
    "nobody knows how long they have waited while Redis is away": (
        f"count({fleet.or_zero_unless(queries.waiting(''), queries.longest_wait())}) or vector(-2)",
        [
            *ONE_UP,
            *FAILING,
            counted(names.WAITING, "3x120", queue="sales"),
        ],
        "{}",
        -2,
    ),
    "Redis is fine": (fleet.backend_state(), [*ONE_UP, REACHED], "{}", fleet.BACKEND_FINE),
    "nobody has needed Redis yet": (fleet.backend_state(), ONE_UP, "{}", fleet.BACKEND_UNUSED),
    "nobody calls, and one of two instances does not reach Redis": (
        fleet.backend_state(),
        [
            *ONE_UP,
            REACHED,
            counted(names.BACKEND_UP, "0x120", instance="b", backend="redis"),
        ],
        "{}",
        fleet.BACKEND_AWAY,
    ),
    "and the other one is fine": (
        f"({fleet.backend_state('instance')}) < 2",
        [
            *ONE_UP,
            REACHED,
            counted(names.BACKEND_UP, "0x120", instance="b", backend="redis"),
        ],
        '{instance="a"}',
        fleet.BACKEND_FINE,
    ),
    "Redis is reached, and operations fail": (
        fleet.backend_state(),
        [*ONE_UP, REACHED, *FAILING],
        "{}",
        fleet.BACKEND_AWAY,
    ),
    "all operations of one instance fail, beside a busy one": (
        fleet.backend_state(),
        [
            *ONE_UP,
            REACHED,
            *FAILING,
            counted(
                f"{names.OPERATION_SECONDS}_count",
                "0+300x120",
                instance="b",
                backend="redis",
                operation="enter",
                outcome="ok",
            ),
        ],
        "{}",
        fleet.BACKEND_AWAY,
    ),
    "Redis was disrupted": (
        fleet.backend_state(),
        [
            *ONE_UP,
            REACHED,
            counted(names.DISRUPTIONS, "0x100 1x20", backend="redis", reason="connection"),
        ],
        "{}",
        fleet.BACKEND_DISRUPTED,
    ),
    "a lost slot is counted in the bar of its minute": (
        f"round({queries.lost('')})",
        [counted(f"{names.HOLD_SECONDS}_count", "0x109 1x30", queue="sales", outcome="lost")],
        "{}",
        1,
    ),
    "there is no bar where none was lost": (
        f"count({queries.lost('')}) or vector(0)",
        [counted(f"{names.HOLD_SECONDS}_count", "1x140", queue="sales", outcome="lost")],
        "{}",
        0,
    ),
    "waits of those who gave up: all buckets": (
        f"count({queries.waits_of_those_who_gave_up()})",
        TEN_CALLERS,
        "{}",
        2,
    ),
    "or none": (
        f"count({queries.waits_of_those_who_gave_up()}) or vector(0)",
        [
            counted(f"{names.WAIT_SECONDS}_{sample}", "0x120", queue="sales", outcome="timeout", le=le)
            for sample, le in (("bucket", "5.0"), ("bucket", "20.0"), ("count", ""))
        ],
        "{}",
        0,
    ),
    "a hold of twenty times the mean, and above a minute, is too long": (
        queries.too_long(),
        held(oldest=70, mean=3),
        SALES,
        70,
    ),
    "one of ten times the mean is not": (
        f"count({queries.too_long()}) or vector(-2)",
        held(oldest=70, mean=7),
        "{}",
        -2,
    ),
    "an hour is, whatever is usual": (queries.too_long(), held(oldest=3601, mean=3000), SALES, 3601),
    "waiting": (queries.waiting(), A_LINE, SALES, 2),
    "longest wait": (queries.longest_wait(), A_LINE, "{}", 9),
    "waiters though slots are free": (queries.stuck(), A_LINE, SALES, 5),
    "no free slot, none stuck": (
        f"count({queries.stuck()}) or vector(0)",
        [
            counted(name, "3x120", queue="sales", backend="redis")
            for name in (names.DEPTH, names.IN_USE, names.LIMIT)
        ],
        "{}",
        0,
    ),
    "callers who met an error are faults": (
        queries.faults_of_queues(),
        [counted(f"{names.WAIT_SECONDS}_count", "0x60 4x60", queue="sales", outcome="error")],
        SALES,
        4,
    ),
    "instances of other jobs are not ours": (
        fleet.down_count(),
        [
            counted("up", "1x120"),
            counted(names.BUILD_INFO, "1x120", version="1", backend="redis"),
            counted("up", "0x120", job="node", instance="n"),
        ],
        "{}",
        0,
    ),
    "one of ours that is down is counted": (
        fleet.down_count(),
        [
            counted("up", "1x60 0x60"),
            counted(names.BUILD_INFO, "1x60 stale", version="1", backend="redis"),
        ],
        "{}",
        1,
    ),
    "long calls in small queues: twice as many can be taken as come": (
        f"{queries.capacity()} / {queries.arriving('')}",
        in_turn(),
        "{}",
        2,
    ),
    "many queues under one label are not stuck": (
        f"count({queries.stuck()}) or vector(0)",
        [
            counted(names.DEPTH, "3x120", queue="_other", backend="redis"),
            counted(names.IN_USE, "90x120", queue="_other", backend="redis"),
            counted(names.LIMIT, "400x120", queue="_other", backend="redis"),
        ],
        "{}",
        0,
    ),
    "nobody answered is a service level of 0, also where no such series is": (
        queries.service_level_strict(""),
        [counted(f"{names.WAIT_SECONDS}_count", "0+1x120", queue="sales", outcome="timeout")],
        "{}",
        0,
    ),
    "nobody gave up is an abandon rate of 0, also where no such series is": (
        queries.abandon_rate(""),
        [counted(f"{names.WAIT_SECONDS}_count", "0+1x120", queue="sales", outcome="granted")],
        "{}",
        0,
    ),
    "the runbook counts the seconds of an outage, on an instance that is two minutes old": (
        promql_blocks((RUNBOOKS / "GenesisBackendUnavailable.md").read_text())[0],
        [counted(names.BACKEND_UP, "_x103 1x0 0x20", backend="redis")],
        '{job="pbx", instance="a", backend="redis"}',
        135,
    ),
    "faults of one kind count where the others have no series": (
        queries.faults_of_queues(),
        [
            counted(names.RECLAIMED, "0x60 5x60", queue="sales", state="waiting"),
            counted(f"{names.WAIT_SECONDS}_count", "0+1x120", queue="sales", outcome="granted"),
        ],
        '{queue="sales"}',
        5,
    ),
}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no `promtool` on this machine")
def test_panels_give_the_right_number(tmp_path: Path) -> None:
    """Evaluated by promtool, with all variables at All."""
    variables = {
        "job": ".+",
        "instance": ".+",
        "queue": ".+",
        "__rate_interval": "1m",
        "__interval": "15s",
        "__range": "30m",
    }
    cases = [
        {
            "name": what,
            "interval": "15s",
            "input_series": series,
            "promql_expr_test": [
                {
                    "expr": f"round({filled_in(expression, variables)}, 0.001)",
                    "eval_time": "28m",
                    "exp_samples": [{"labels": labels, "value": value}],
                }
            ],
        }
        for what, (expression, series, labels, value) in ANSWERS.items()
    ]
    file = tmp_path / "answers.test.yml"
    file.write_text(json.dumps({"evaluation_interval": "15s", "tests": cases}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
