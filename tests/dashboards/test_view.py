"""The dashboards as an operator sees them: rendered with Grafana's components, in every state.

One run for all tests here (`view/states.py`, six minutes), drawn at 1366 px.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
import pytest_asyncio

from dashboards.generate import dashboards
from tests.dashboards.view.moments import MINUTES, SIGNS, shots
from tests.dashboards.view.states import INSTANCES, SCRAPE_SECONDS, STATES, Moment, Played, play
from tests.dashboards.view.viewer import Picture, draw, install, missing
from tests.support.observers import Prometheus
from tests.support.telemetry_names import filled_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

WIDTH = 1366
TILES = {
    board["uid"]: {panel["title"]: panel for panel in board["panels"] if panel["type"] == "stat"}
    for board in dashboards().values()
}
OVERVIEW, QUEUE = "genesis-overview", "genesis-queue"


class Seen(NamedTuple):
    played: Played
    pictures: dict[tuple[str, str], tuple[Moment, Picture]]
    """By state and dashboard."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def seen() -> AsyncIterator[Seen]:
    lacking = missing() or ("" if Prometheus.available() else Prometheus.MISSING)
    if lacking:
        pytest.skip(lacking)
    try:
        folder = await asyncio.to_thread(install)
    except RuntimeError as error:
        pytest.skip(f"Grafana's components cannot be installed: {error}")
    async with await play() as played:
        wanted = shots(played, WIDTH)
        logs = {moment.job: list(played.logs(moment.job)) for moment in played.moments}
        drawn = await asyncio.to_thread(
            lambda: list(draw(folder, played.prometheus.url, logs, [shot for _, shot in wanted]))
        )
        yield Seen(
            played,
            {
                (moment.state, picture.shot.dashboard): (moment, picture)
                for (moment, _), picture in zip(wanted, drawn, strict=True)
            },
        )


def test_every_state_has_its_signs() -> None:
    assert set(SIGNS) == set(STATES)


def test_no_title_and_no_column_is_cut(seen: Seen) -> None:
    cut = {key: picture.cut for key, (_, picture) in seen.pictures.items() if picture.cut}
    assert cut == {}


def test_nothing_fails_to_be_drawn(seen: Seen) -> None:
    errors = {key: picture.errors for key, (_, picture) in seen.pictures.items() if picture.errors}
    assert errors == {}


@pytest.mark.parametrize("state", ["idle", "healthy"])
@pytest.mark.parametrize("board", TILES)
def test_health_has_no_colour(seen: Seen, state: str, board: str) -> None:
    """No tile and no cell is orange or red. The p99 may be: other work makes the machine slow."""
    _, picture = seen.pictures[state, board]
    assert [each for each in picture.bad() if each[:2] != ("Instances", "p99")] == []


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("board", [OVERVIEW, QUEUE])
def test_the_right_tiles_have_a_colour(seen: Seen, state: str, board: str) -> None:
    _, picture = seen.pictures[state, board]
    coloured = {panel for panel, _, _ in picture.bad()} & set(TILES[board])
    must, might = (tiles & set(TILES[board]) for tiles in SIGNS[state])
    assert must <= coloured <= must | might, picture.bad()


REDIS = {
    "no data": "no data",
    "redis down 10 s": "fails",
    "redis down 150 s": "fails",
    "redis back": "disrupted",
    "all stopped": "no data",
}
"""What the tile says, if it is not "ok"."""


@pytest.mark.parametrize("state", STATES)
def test_the_tile_says_how_redis_is(seen: Seen, state: str) -> None:
    for board in (OVERVIEW, QUEUE):
        _, picture = seen.pictures[state, board]
        assert [each.text for each in picture.panels["Redis"]] == [REDIS.get(state, "ok")]


def test_the_table_says_which_instances_do_not_reach_redis(seen: Seen) -> None:
    for state, word in (("healthy", "ok"), ("redis down 10 s", "fails"), ("redis back", "disrupted")):
        _, picture = seen.pictures[state, OVERVIEW]
        cells = [each.text for each in picture.panels["Instances"] if each.name == "Redis"]
        assert cells == [word] * INSTANCES


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("board", [OVERVIEW, QUEUE])
def test_every_number_is_prometheus_s(seen: Seen, state: str, board: str) -> None:
    """Each tile shows what its query gives at that instant; none, if that gives nothing."""
    moment, picture = seen.pictures[state, board]
    variables = {
        "job": moment.job,
        "instance": ".+",
        "queue": picture.shot.query.get("var-queue", ".+"),
        "__rate_interval": f"{4 * SCRAPE_SECONDS}s",
        "__range": f"{60 * MINUTES}s",
    }
    wrong = []
    for title, panel in TILES[board].items():
        given = [
            float(sample["value"][1])
            for target in panel["targets"]
            for sample in seen.played.prometheus.query(filled_in(target["expr"], variables), moment.at)
        ]
        shown = [each.number for each in picture.panels[title] if each.number is not None]
        if len(given) != len(shown) or not all(map(math.isclose, given, shown)):
            wrong.append(f"{title}: shown {shown}, is {given}")
    assert wrong == []
