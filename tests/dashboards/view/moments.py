"""Which pictures are taken of a state, and which tiles must have a colour in each."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

from tests.dashboards.view.states import SCRAPE_SECONDS, Moment, Played
from tests.dashboards.view.viewer import BOARDS, Shot

__all__ = ["MINUTES", "SIGNS", "shots"]

MINUTES = 15
QUEUE = "sales"

# Figures of minutes follow what happens now after a while.
LATE = {"In 20 s, last 5 min", "In 20 s, time shown", "Gave up, last 5 min"}
SIGNS: dict[str, tuple[set[str], set[str]]] = {
    "no data": ({"Instances now"}, set()),
    "idle": (set(), set()),
    "healthy": (set(), set()),
    "busy": (set(), {"Fullest queue now", "Longest wait now", *LATE}),
    "slots exhausted": (
        {"Fullest queue now", "Longest wait now", "Gave up, last 5 min", "In 20 s, last 5 min"},
        {"Longest hold now", *LATE},
    ),
    "one slot stuck": ({"Longest hold now"}, {"Fullest queue now"}),
    "instance killed": (
        {"Instances now", "Reclaimed, last 5 min"},
        {"Fullest queue now", "Longest wait now", *LATE},
    ),
    "redis down 10 s": ({"Redis"}, LATE),
    "redis down 150 s": ({"Redis", "In 20 s, last 5 min"}, LATE),
    "redis back": ({"Redis", "In 20 s, last 5 min"}, {"Longest wait now", *LATE}),
    "all stopped": ({"Instances now"}, set()),
}
"""By state: the tiles that must have a colour, and those that may."""


def shots(played: Played, width: int, folder: Path | None = None) -> list[tuple[Moment, Shot]]:
    """All dashboards in all states; written to `folder`, if there is one."""
    found = []
    for moment in played.moments:
        for board in BOARDS:
            name = f"{moment.state.replace(' ', '-')}-{board.removeprefix('genesis-')}-{width}.png"
            out = str(folder / name) if folder else ""
            found.append((moment, Shot(board, width, _query(played, moment, board), out)))
    return found


def _query(played: Played, moment: Moment, board: str) -> dict[str, str]:
    query = {
        "to": f"{moment.at:.3f}",
        "minutes": str(MINUTES),
        "interval": str(SCRAPE_SECONDS),
        "var-job": moment.job,
        "logs": "1",
    }
    if board == "genesis-queue":
        query["var-queue"] = QUEUE
    if board == "genesis-call":
        query["var-item_id"] = _call(list(played.logs(moment.job)), moment.at)
    return query


def _call(logs: list[str], before: float) -> str:
    """The last call of which a log says how it ended before that moment, in an hour at most."""
    last = ("", "none")
    for file in logs:
        for text in Path(file).read_text().splitlines():
            line = json.loads(text) if text.startswith("{") else {}
            ended = line.get("event") in ("released", "timeout", "error")
            if ended and line.get("queue_id") == QUEUE and line["timestamp"] < _iso(before):
                last = max(last, (line["timestamp"], line["item_id"]))
    return last[1]


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).isoformat()
