"""The example `examples/call_centre.py`: its days, its judge, and whole runs of it.

Runs of the real day look for it where GENESIS_BANK_DAY says, then beside the repository.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from examples import call_centre
from examples.call_centre import (
    Call,
    CannotRun,
    Day,
    Event,
    Figures,
    History,
    Instance,
    Kind,
    LimitChange,
    LimitSet,
    Look,
    Outcome,
    Replay,
    Row,
    agents_on_duty,
    calls_an_hour,
    check_endings,
    check_limit,
    check_order,
    generate_day,
    ideal_outcomes,
    read_day,
)
from genesis import Queue
from genesis.backends.protocol import EnterRequest, EnterResult, LeaveResult, Ticket
from genesis.observability import Telemetry
from genesis.queue import InMemoryBackend
from tests.redis_server import RedisServer, free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "examples" / "call_centre.py"
HEADER = "entered_s,call_id,service,priority,waited_s,outcome,talked_s,agent"


def write_csv(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "day.csv"
    path.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return path


def busy_rows(calls: int = 80) -> list[str]:
    """Ten minutes with three agents, of whom one leaves early, and more calls than they can carry."""
    rows = []
    for number in range(calls):
        entered = 36000 + number * 600 // calls
        if number % 4 == 3:
            rows.append(f"{entered},call-{number},PS,0,{5 + number % 40},abandoned,,")
        else:
            agent = number % 3 if number < calls // 2 else number % 2
            rows.append(f"{entered},call-{number},PS,0,0,answered,{10 + number % 30},agent-{agent}")
    return rows


def program(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def assert_all_well(
    done: subprocess.CompletedProcess[str], calls: int, answered: int, slack: int
) -> None:
    """The run found nothing wrong and, but for a few calls, did what an ideal line does."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert f"ended exactly once: {calls} of {calls}" in done.stdout
    assert "limit held at every instant: yes" in done.stdout
    assert "FIFO held at every instant: yes" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("calls answered"))
    assert abs(int(row.split()[2]) - answered) <= slack, row


# ------------------------------------------------------------------------------------------- days


def test_same_seed_same_day() -> None:
    """A seed names one generated day; another seed names another."""
    assert generate_day(7) == generate_day(7)
    assert generate_day(7).calls != generate_day(8).calls


def test_generated_arrivals_follow_the_rate_of_the_hour() -> None:
    """The calls of each hour are as many as the rate says, within four deviations."""
    calls = [call for seed in range(10) for call in generate_day(seed).calls]
    for hour, _, _ in call_centre.HOURS:
        found = sum(hour <= call.entered / 3600 < hour + 1 for call in calls)
        minutes = [calls_an_hour(hour * 3600 + 60 * minute) / 60 for minute in range(60)]
        expected = 10 * sum(minutes)
        assert abs(found - expected) < 4 * math.sqrt(expected), hour


def test_generated_calls_are_in_order_and_within_hours() -> None:
    """Generated calls come in the order of entering, bear unique ids, and only while it is open."""
    day = generate_day(3)
    entered = [call.entered for call in day.calls]
    assert entered == sorted(entered)
    assert 7 * 3600 <= entered[0] < entered[-1] < 24 * 3600
    assert len({call.call_id for call in day.calls}) == len(day.calls)


def test_generated_talks_and_patience_have_their_distributions() -> None:
    """Talks are lognormal and patience exponential with the documented parameters."""
    calls = [call for seed in range(5) for call in generate_day(seed).calls]
    logarithms = [math.log(call.talk) for call in calls]
    patience = [call.patience for call in calls if call.patience is not None]
    assert statistics.mean(logarithms) == pytest.approx(call_centre.TALK_LOG_MEAN, rel=0.02)
    assert statistics.stdev(logarithms) == pytest.approx(call_centre.TALK_LOG_DEVIATION, rel=0.05)
    assert len(patience) == len(calls)
    assert statistics.mean(patience) == pytest.approx(call_centre.PATIENCE_MEAN, rel=0.05)
    assert statistics.stdev(patience) == pytest.approx(call_centre.PATIENCE_MEAN, rel=0.1)


def test_agents_are_on_duty_from_their_first_to_their_last_call() -> None:
    """Between two calls an agent stays on duty, and shifts add up."""
    rows = [
        Row("a", "PS", 100, 10, 20, "agent-1"),
        Row("b", "PS", 150, 0, 10, "agent-2"),
        Row("c", "PS", 200, 0, 50, "agent-1"),
    ]
    assert agents_on_duty(rows) == [LimitChange(110, 1), LimitChange(150, 2), LimitChange(160, 1)]


def test_abandoned_calls_bring_no_agent() -> None:
    """A call that hung up says nothing about who was on duty."""
    assert agents_on_duty([Row("a", "PS", 100, 10, None, "")]) == []


def test_unrecorded_agent_is_on_duty_for_one_call() -> None:
    """Two answered calls without an agent were taken by two, each there for that call alone."""
    rows = [
        Row("a", "PS", 100, 0, 30, ""),
        Row("b", "PS", 120, 0, 30, ""),
        Row("c", "PS", 500, 0, 10, "agent-1"),
    ]
    changes = [LimitChange(100, 1), LimitChange(120, 2), LimitChange(130, 1), LimitChange(150, 0)]
    assert agents_on_duty(rows) == [*changes, LimitChange(500, 1)]


def test_last_on_duty_stay() -> None:
    """The limit never falls to 0 at the end of the day, so whoever still waits is answered."""
    rows = [Row("a", "PS", 100, 0, 30, "agent-1"), Row("b", "PS", 100, 0, 60, "agent-2")]
    assert agents_on_duty(rows)[-1] == LimitChange(130, 1)
    assert agents_on_duty([Row("a", "PS", 100, 0, 0, "agent-1")]) == [LimitChange(100, 1)]


def test_csv_becomes_calls_and_record(tmp_path: Path) -> None:
    """Answered calls wait for ever, abandoned ones as long as they did; their talk is drawn."""
    path = write_csv(
        tmp_path,
        "200,later,PS,0,5,answered,60,agent-1",
        "100,first,NE,2,0,answered,30,agent-1",
        "300,gone,NE,0,12,abandoned,,",
    )
    day = read_day(path, seed=1)
    assert day.calls == [
        Call("first", 100, None, 30),
        Call("later", 200, None, 60),
        Call("gone", 300, 12, 30),
    ]
    assert day.limits == [LimitChange(100, 1)]
    assert day.start == 100
    assert day.recorded == [Outcome(100, 0, True), Outcome(200, 5, True), Outcome(300, 12, False)]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("x,a,PS,0,0,answered,5,", "entered_s must be a number of seconds, not 'x'"),
        ("1,a,PS,0,-3,answered,5,", "waited_s must be a number of seconds, not '-3'"),
        ("1,a,PS,0,nan,abandoned,,", "waited_s must be a number of seconds, not 'nan'"),
        ("1,a,PS,0,0,answered,,", "talked_s must be a number of seconds, not ''"),
        ("1,a,PS,0,0,lost,5,", "outcome must be answered or abandoned, not 'lost'"),
        ("1,,PS,0,0,answered,5,", "call_id is empty"),
        ("1,good,PS,0,0,answered,5,", "call_id 'good' is in the file twice"),
        ("1,a,PS,0,0", "it has another number of fields than the header"),
        ("1,a,PS,0,0,answered,5,agent,more", "it has another number of fields than the header"),
    ],
)
def test_malformed_row_stops_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, why: str
) -> None:
    """A bad row is told in one line that names it, with exit code 2, before anything is started."""
    path = write_csv(tmp_path, "0,good,PS,0,0,answered,5,agent-1", row)
    assert call_centre.main([str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"call_centre: {path}: row 3: {why}\n"


def test_unusable_files_are_told_apart(tmp_path: Path) -> None:
    """A file that is absent, empty, binary, or lacks a column is refused with its own reason."""
    with pytest.raises(CannotRun, match="No such file"):
        read_day(tmp_path / "absent.csv", 1)
    with pytest.raises(CannotRun, match="row 1: the header lacks entered_s, call_id"):
        read_day(write_csv(tmp_path, header=""), 1)
    with pytest.raises(CannotRun, match="row 1: the header lacks agent"):
        read_day(write_csv(tmp_path, header=HEADER.removesuffix(",agent")), 1)
    with pytest.raises(CannotRun, match="there are no calls in it"):
        read_day(write_csv(tmp_path), 1)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CannotRun, match="decode"):
        read_day(binary, 1)


def test_ideal_line_is_first_come_first_served() -> None:
    """One agent, four callers: in order, with the impatient one gone, and the second agent in time."""
    calls = [
        Call("a", 0, None, 100),
        Call("b", 10, 30, 100),
        Call("c", 20, None, 50),
        Call("d", 30, 500, 1),
    ]
    day = Day("", calls, [LimitChange(0, 1), LimitChange(80, 2)])
    outcomes, end = ideal_outcomes(day)
    assert outcomes == [
        Outcome(0, 0, answered=True),
        Outcome(10, 30, answered=False),
        Outcome(20, 60, answered=True),
        Outcome(30, 70, answered=True),
    ]
    assert end == 130  # when c has talked; that d would have hung up at 530 does not matter


def test_figures_follow_their_definitions() -> None:
    """Who hung up within 20 s counts against the strict service level, and not against the lenient."""
    figures = Figures.of(
        [
            Outcome(0, 0, answered=True),
            Outcome(0, 20, answered=True),
            Outcome(10, 40, answered=True),
            Outcome(20, 5, answered=False),
            Outcome(20, 100, answered=False),
        ]
    )
    assert figures == Figures(
        answered=3, abandoned=2, speed_of_answer=20, strict_level=2 / 5, lenient_level=2 / 4, depth=3
    )


def test_kill_time_is_a_clock_or_a_fraction() -> None:
    """--kill-one-at takes 00:15, 00:15:30 or 0.5, and refuses what is not in the day."""
    day = Day("", [Call("a", 600, None, 1), Call("b", 1200, None, 1)], [])
    assert call_centre.when("00:15", day) == 900
    assert call_centre.when("00:15:30", day) == 930
    assert call_centre.when("0.5", day) == 900
    for wrong in ("noon", "1.5", "00:05", "23:00", "1:2:3:4", ""):
        with pytest.raises(CannotRun, match="from 00:10:00 to 00:20:00"):
            call_centre.when(wrong, day)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--speed", "0"],
        ["--speed", "inf"],
        ["--instances", "0"],
        ["--instances", "2"],
        ["--kill-one-at", "0.5"],
        ["--metrics-port", "70000"],
    ],
)
def test_impossible_options_are_refused(arguments: list[str]) -> None:
    """What cannot be done is a usage error, with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        call_centre.main(arguments)
    assert stopped.value.code == 2


# -------------------------------------------------------------------------------------- the judge


class Plant:
    """Builds a history step by step; every step is one tick later than the one before."""

    def __init__(self, limit: int = 1) -> None:
        self.now = 0
        self.history = History()
        self.limit(limit)

    def tick(self) -> int:
        self.now += 1
        return self.now

    def limit(self, limit: int) -> None:
        self.history.limits.append(LimitSet(limit, self.tick(), self.tick()))

    def enter(self, call: str, on: str = "1") -> None:
        self.history.routed[call] = on
        self._note("entering", call)

    def grant(self, call: str, token: int) -> None:
        self._note("granted", call, token=token)

    def leave(self, call: str, note: str = "") -> None:
        self._note("leaving", call, note=note)
        self._note("left", call)

    def abandon(self, call: str) -> None:
        self._note("abandoned", call)

    def look(self, *waiting: str, holding: Sequence[str] = ()) -> None:
        self.history.looks.append(Look(self.tick(), self.tick(), waiting, tuple(holding)))

    def kill(self, instance: str) -> None:
        self.history.killed[instance] = self.tick()

    def _note(self, kind: Kind, call: str, token: int = 0, note: str = "") -> None:
        on = self.history.routed[call]
        self.history.events.append(Event(on, kind, self.tick(), call, token, note=note))

    @property
    def endings(self) -> list[str]:
        return check_endings(self.history, self.history.routed)[0]


def test_faultless_history_passes() -> None:
    """Two instances that take turns, a hang-up and a change of the limit: nothing to complain about."""
    plant = Plant(limit=1)
    plant.enter("a", on="1")
    plant.grant("a", 1)
    plant.enter("b", on="2")
    plant.look("b", holding=["a"])
    plant.enter("c", on="1")
    plant.enter("d", on="2")
    plant.look("b", "c", "d", holding=["a"])
    plant.abandon("c")
    plant.leave("a")
    plant.grant("b", 5)
    plant.limit(2)
    plant.grant("d", 6)
    plant.leave("d")
    plant.leave("b")
    assert plant.endings == []
    assert check_limit(plant.history) == []
    assert check_order(plant.history) == []


def test_grant_over_the_limit_is_found() -> None:
    """A second grant while one holds and the limit is 1 is named with all concerned."""
    plant = Plant(limit=1)
    plant.enter("a", on="1")
    plant.enter("b", on="2")
    plant.grant("a", 1)
    plant.grant("b", 2)
    plant.leave("a")
    plant.leave("b")
    assert check_limit(plant.history) == [
        "b (token 2) was granted while the limit was 1 and 1 held: a",
    ]


def test_grant_while_paused_is_found() -> None:
    """With the limit at 0 any grant is one too many."""
    plant = Plant(limit=0)
    plant.enter("a")
    plant.grant("a", 1)
    assert check_limit(plant.history) == [
        "a (token 1) was granted while the limit was 0 and 0 held: nobody",
    ]


def test_lowered_limit_takes_nothing_from_holders() -> None:
    """Holders above a lowered limit are in order; a grant before enough of them left is not."""
    plant = Plant(limit=2)
    plant.enter("a")
    plant.grant("a", 1)
    plant.enter("b")
    plant.grant("b", 2)
    plant.limit(1)
    plant.enter("c")
    plant.look("c", holding=["a", "b"])
    plant.leave("a")
    assert check_limit(plant.history) == []
    plant.grant("c", 3)
    plant.leave("b")
    assert [line.split()[0] for line in check_limit(plant.history)] == ["c"]


@pytest.mark.parametrize("seen_waiting", [False, True])
def test_limit_that_may_have_been_in_force_is_allowed(seen_waiting: bool) -> None:
    """A grant noted after the limit was lowered may be older, unless the call still waited then."""
    plant = Plant(limit=2)
    plant.enter("a")
    plant.grant("a", 1)
    plant.enter("b")
    plant.limit(1)
    if seen_waiting:
        plant.look("b", holding=["a"])
    plant.grant("b", 2)
    plant.leave("a")
    assert len(check_limit(plant.history)) == seen_waiting


def test_grant_noted_late_is_no_violation() -> None:
    """Notes that overlap prove nothing when the slot was given back before the grant was noted."""
    plant = Plant(limit=1)
    plant.enter("a", on="1")
    plant.grant("a", 1)
    plant.enter("b", on="2")
    plant.history.events.append(Event("1", "leaving", plant.tick(), "a"))
    plant.grant("b", 2)
    plant.history.events.append(Event("1", "left", plant.tick(), "a"))
    assert check_limit(plant.history) == []


def test_killed_holder_holds_until_it_is_killed() -> None:
    """A grant before the SIGKILL is one too many; afterwards the slot may have been reaped."""
    plant = Plant(limit=1)
    plant.enter("a", on="1")
    plant.grant("a", 1)
    plant.enter("b", on="2")
    early, late = Plant(), Plant()
    for other in (early, late):
        other.history = replace(plant.history, events=[*plant.history.events], killed={})
        other.now = plant.now
    early.grant("b", 2)
    early.kill("1")
    late.kill("1")
    late.grant("b", 2)
    assert len(check_limit(early.history)) == 1
    assert check_limit(late.history) == []


def test_lost_slot_is_not_counted_as_held() -> None:
    """A holder that found its slot lost cannot accuse the one who has it now."""
    plant = Plant(limit=1)
    plant.enter("a", on="1")
    plant.grant("a", 1)
    plant.enter("b", on="2")
    plant.grant("b", 2)
    plant.leave("a", note="lost")
    assert check_limit(plant.history) == []


def test_token_given_twice_is_found() -> None:
    """Two grants never bear the same fencing token."""
    plant = Plant(limit=2)
    for call in ("a", "b"):
        plant.enter(call)
        plant.grant(call, 4)
    assert check_limit(plant.history) == ["b was granted the token 4, which another has"]


def test_overtaking_within_an_instance_is_found() -> None:
    """Through one instance the order of entering is the order of the tokens."""
    plant = Plant(limit=2)
    plant.enter("a")
    plant.enter("b")
    plant.grant("b", 1)
    plant.grant("a", 2)
    assert check_order(plant.history) == [
        "b of instance 1 (token 1) overtook a of instance 1 (token 2)",
    ]


def test_overtaking_across_instances_is_found() -> None:
    """Who entered after another was seen in line must not be granted before it."""
    plant = Plant(limit=1)
    plant.enter("a", on="1")
    plant.look("a")
    plant.enter("b", on="2")
    plant.grant("b", 1)
    plant.leave("b")
    plant.grant("a", 2)
    assert check_order(plant.history) == [
        "b of instance 2 (token 1) overtook a of instance 1 (token 2)",
    ]


def test_near_simultaneous_entries_may_be_in_either_order() -> None:
    """Across instances, who began to enter first need not have arrived first."""
    plant = Plant(limit=1)
    plant.enter("a", on="1")
    plant.enter("b", on="2")
    plant.look("b", "a")
    plant.grant("b", 1)
    plant.leave("b")
    plant.grant("a", 2)
    assert check_order(plant.history) == []


def test_order_seen_in_the_line_must_be_kept() -> None:
    """Two that were seen waiting are granted in the order in which they stood."""
    plant = Plant(limit=2)
    plant.enter("a", on="1")
    plant.enter("b", on="2")
    plant.look("b", "a")
    plant.grant("a", 1)
    plant.grant("b", 2)
    assert check_order(plant.history) == [
        "a of instance 1 (token 1) overtook b of instance 2 (token 2)",
    ]


def test_overtaking_one_who_gives_up_later_is_found() -> None:
    """A waiter that was passed over is missed even if it hangs up before its turn."""
    plant = Plant(limit=1)
    plant.enter("a", on="1")
    plant.look("a")
    plant.enter("b", on="2")
    plant.grant("b", 1)
    plant.look("a", holding=["b"])
    plant.abandon("a")
    assert check_order(plant.history) == [
        "b of instance 2 (token 1) overtook a, which was seen waiting afterwards",
    ]


def test_hang_up_during_its_own_grant_is_no_overtaking() -> None:
    """Who hung up after another's grant may have been granted, unnoticed, just before."""
    plant = Plant(limit=1)
    plant.enter("a", on="1")
    plant.look("a")
    plant.enter("b", on="1")
    plant.grant("b", 2)
    plant.abandon("a")
    assert check_order(plant.history) == []


@pytest.mark.parametrize(
    ("kinds", "ended_once"),
    [
        (["entering", "granted", "leaving", "left"], True),
        (["entering", "abandoned"], True),
        (["entering", "failed"], True),
        ([], False),
        (["entering"], False),
        (["entering", "granted", "leaving"], False),
        (["entering", "abandoned", "abandoned"], False),
        (["entering", "granted", "abandoned"], False),
        (["entering", "granted", "leaving", "left", "left"], False),
        (["entering", "abandoned", "entering", "abandoned"], False),
    ],
)
def test_each_call_must_end_exactly_once(kinds: list[Kind], ended_once: bool) -> None:
    """No ending, two endings and endings of two kinds are violations."""
    history = History(routed={"a": "1"})
    history.events += [Event("1", kind, at, "a") for at, kind in enumerate(kinds)]
    violations, cut_off = check_endings(history, ["a"])
    assert (violations == []) is ended_once
    assert cut_off == []


def test_calls_of_a_killed_instance_may_be_cut_off() -> None:
    """A life that stops short is excused by a SIGKILL of its instance alone; a wrong one is not."""
    plant = Plant()
    plant.enter("talking", on="1")
    plant.grant("talking", 1)
    plant.history.routed["on its way"] = "1"
    plant.enter("twice", on="1")
    plant.abandon("twice")
    plant.abandon("twice")
    plant.enter("elsewhere", on="2")
    plant.kill("1")
    violations, cut_off = check_endings(plant.history, plant.history.routed)
    assert cut_off == ["talking", "on its way"]
    assert [line.split()[0] for line in violations] == ["twice", "elsewhere"]


def test_call_from_nowhere_is_found() -> None:
    """A call that is not of the day has no business in its history."""
    plant = Plant()
    plant.enter("stray")
    assert check_endings(plant.history, [])[0] == ["stray is not a call of this day: entering"]


# --------------------------------------------------------------------------------------- whole runs


class OneTooMany(InMemoryBackend):
    """Grants a slot more than it may."""

    async def set_limit(self, queue_id: str, limit: int | None) -> None:
        await super().set_limit(queue_id, None if limit is None else limit + 1)


class Unfair(InMemoryBackend):
    """Lets every tenth caller stand outside until three others have entered, or nobody is there."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.outside: list[tuple[int, asyncio.Event]] = []  # who goes in after which call

    async def enter(self, request: EnterRequest) -> EnterResult:
        self.calls += 1
        if self.calls % 10 == 0:
            door = asyncio.Event()
            self.outside.append((self.calls + 3, door))
            await door.wait()
        admission = await super().enter(request)
        self.let_in()
        return admission

    def leave(self, ticket: Ticket, context: str = "", keep_place: float = 0.0) -> LeaveResult:
        result = super().leave(ticket, context, keep_place)
        self.let_in()
        return result

    def let_in(self) -> None:
        idle = not any(line.waiting or line.holding for line in self._lines.values())
        while self.outside and (self.outside[0][0] <= self.calls or idle):
            self.outside.pop(0)[1].set()


async def replay_in_memory(path: Path, speed: float, backend: InMemoryBackend | None = None) -> Replay:
    telemetry = Telemetry(registry=CollectorRegistry())
    async with Queue(backend, telemetry=telemetry) as queue:
        replay = Replay(read_day(path, 1), speed, queue)
        await replay.run([Instance("1", queue, replay.note)])
        return replay


async def test_judge_finds_what_is_planted_in_a_real_history(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real run passes; with two tokens swapped, a lower limit or an event lost it does not."""
    path = write_csv(tmp_path, *busy_rows())
    day = read_day(path, 1)
    replay = await replay_in_memory(path, speed=600)
    assert call_centre.report(day, replay, lease=0)

    good = replay.history
    waited = [e for e in good.events if e.kind == "granted" and e.waited > 0]
    assert len(waited) > 10, "the day is meant to be busy"
    for first, second in itertools.pairwise(waited):
        swap = {
            first: first._replace(token=second.token),
            second: second._replace(token=first.token),
        }
        swapped = replace(good, events=[swap.get(event, event) for event in good.events])
        assert check_order(swapped), f"{first.call_id} and {second.call_id} were exchanged"

    lower = [change._replace(limit=max(0, change.limit - 1)) for change in good.limits]
    assert check_limit(replace(good, limits=lower))

    left = next(event for event in good.events if event.kind == "left")
    replay.history = replace(good, events=[event for event in good.events if event != left])
    capsys.readouterr()
    assert not call_centre.report(day, replay, lease=0)
    said = f"VIOLATION: {left.call_id} did not end exactly once: entering, granted, leaving"
    assert said in capsys.readouterr().out


async def test_judge_finds_a_backend_that_grants_too_many(tmp_path: Path) -> None:
    """A backend that gives out a slot more than the limit is found out; its order is not blamed."""
    replay = await replay_in_memory(write_csv(tmp_path, *busy_rows()), 600, OneTooMany())
    assert check_limit(replay.history)
    assert check_order(replay.history) == []


async def test_judge_finds_an_unfair_backend(tmp_path: Path) -> None:
    """A backend in which some are overtaken is found out; its limit is not blamed."""
    replay = await replay_in_memory(write_csv(tmp_path, *busy_rows()), 600, Unfair())
    assert check_order(replay.history)
    assert check_limit(replay.history) == []


async def test_run_in_memory_does_what_an_ideal_line_does(tmp_path: Path) -> None:
    """In memory the outcome of nearly every call is the computed one."""
    path = write_csv(tmp_path, *busy_rows())
    day = read_day(path, 1)
    replay = await replay_in_memory(path, speed=200)
    ideal, run = Figures.of(ideal_outcomes(day)[0]), Figures.of(replay.outcomes())
    assert run.answered + run.abandoned == len(day.calls)
    assert abs(run.answered - ideal.answered) <= 8
    assert run.speed_of_answer == pytest.approx(ideal.speed_of_answer, rel=0.3, abs=5)


def test_program_replays_a_file(tmp_path: Path) -> None:
    """The program shows progress, ends with the three columns, and finds nothing wrong."""
    path = write_csv(tmp_path, *busy_rows())
    done = program(str(path), "--speed", "600")
    answered = Figures.of(ideal_outcomes(read_day(path, 1))[0]).answered
    assert_all_well(done, calls=80, answered=answered, slack=12)
    assert "waiting" in done.stdout.splitlines()[1]
    heads = next(line.split("  ") for line in done.stdout.splitlines() if "ideal line" in line)
    assert [head.strip() for head in heads if head.strip()] == ["this run", "ideal line", "recorded"]


async def test_metrics_are_served_while_it_runs(tmp_path: Path) -> None:
    """--metrics-port serves the histograms of the run that is going on."""
    path = write_csv(tmp_path, *busy_rows())
    port = free_port()
    url = f"http://127.0.0.1:{port}/metrics"
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), str(path), "--speed", "60", "--metrics-port", str(port),
        stdout=subprocess.DEVNULL,
    )  # fmt: skip

    def served() -> bool:
        assert process.returncode is None, "it has ended"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            return b'genesis_queue_wait_seconds_count{outcome="granted",queue="bank"}' in answer.read()
        return False

    try:
        await wait_until(served, f"{url} shows the wait of a call")
    finally:
        process.kill()
        await process.wait()


def test_instances_share_one_line(tmp_path: Path, redis_server: RedisServer) -> None:
    """Over Redis three processes serve the day in one order, and leave no override behind."""
    path = write_csv(tmp_path, *busy_rows())
    done = program(str(path), "--speed", "300", "--redis", redis_server.url, "--instances", "3")
    answered = Figures.of(ideal_outcomes(read_day(path, 1))[0]).answered
    assert_all_well(done, calls=80, answered=answered, slack=12)
    assert redis_server.keys_without_expiry() == []


async def test_queue_in_use_is_left_alone(tmp_path: Path, redis_server: RedisServer) -> None:
    """A run does not mix with another on the same line: it says so and does not start."""
    path = write_csv(tmp_path, *busy_rows())
    first = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), str(path), "--speed", "60", "--redis", redis_server.url,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        held = "genesis:queue:{bank}:holding"
        await wait_until(lambda: redis_server.client.exists(held), "a call of the first run holds")
        second = await asyncio.to_thread(program, str(path), "--redis", redis_server.url)
    finally:
        first.kill()
        await first.wait()
    assert second.returncode == 2
    assert second.stderr.startswith("call_centre: the queue 'bank' is in use")


def test_unreachable_redis_is_one_line() -> None:
    """Without a Redis there the program says so and exits with 2."""
    done = program("--redis", f"redis://127.0.0.1:{free_port()}", "--lease", "1")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "redis" in done.stderr


@pytest.fixture(scope="module")
def bank_day() -> Path:
    named = os.environ.get("GENESIS_BANK_DAY")
    path = Path(named) if named else ROOT.parent / "shared" / "data" / "bank-day.csv"
    if not path.exists():
        pytest.skip(f"the recorded day is not at {path}; name the file in GENESIS_BANK_DAY")
    return path


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_real_day_in_memory(bank_day: Path) -> None:
    """The recorded day, 1,200 times as fast: every call ends once, limit and order hold."""
    done = program(str(bank_day), "--speed", "1200", timeout=170)
    answered = Figures.of(ideal_outcomes(read_day(bank_day, 1))[0]).answered
    assert_all_well(done, calls=2239, answered=answered, slack=120)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_real_day_over_redis(bank_day: Path, redis_server: RedisServer) -> None:
    """The recorded day on three instances that share one line."""
    options = ("--speed", "1200", "--redis", redis_server.url, "--instances", "3")
    done = program(str(bank_day), *options, timeout=170)
    answered = Figures.of(ideal_outcomes(read_day(bank_day, 1))[0]).answered
    assert_all_well(done, calls=2239, answered=answered, slack=100)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_real_day_with_one_instance_killed(bank_day: Path, redis_server: RedisServer) -> None:
    """One of three is killed at eleven: all other calls end, and its own are reaped in time."""
    options = ("--speed", "1200", "--redis", redis_server.url, "--instances", "3")
    done = program(str(bank_day), *options, "--lease", "2", "--kill-one-at", "11:00", timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    ended = next(line for line in lines if line.startswith("ended exactly once")).split()
    cut_off = int(ended[6])
    assert cut_off > 0, "it was killed with calls in its hands"
    assert int(ended[3]) + cut_off == 2239
    reaped = next(line for line in lines if " was killed; " in line)
    assert 0 < float(reaped.split(" was reaped after ")[1].split()[0]) <= 2 + call_centre.REAP_MARGIN
