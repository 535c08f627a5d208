"""Plays all states and draws the dashboards in each: `python -m tests.dashboards.view [FOLDER]`.

It takes six minutes to play, and three to draw. With `--readme`, three of the pictures replace those in
`dashboards/pictures`.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
from pathlib import Path

from tests.dashboards.view.moments import shots
from tests.dashboards.view.states import play
from tests.dashboards.view.viewer import WIDTHS, draw, install, missing
from tests.support.observers import Prometheus
from tests.support.telemetry_names import DASHBOARDS

PICTURES = ("healthy-overview-1366", "slots-exhausted-overview-1366", "instance-killed-queue-1366")


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.dashboards.view", description=__doc__)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("pictures"), help="for the pictures"
    )
    parser.add_argument(
        "--readme", action="store_true", help="replace those in dashboards/pictures, too"
    )
    chosen = parser.parse_args()
    lacking = missing() or ("" if Prometheus.available() else Prometheus.MISSING)
    if lacking:
        sys.exit(lacking)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    folder = await asyncio.to_thread(install)
    async with await play() as played:
        wanted = [each for width in WIDTHS for _, each in shots(played, width, chosen.folder)]
        logs = {moment.job: list(played.logs(moment.job)) for moment in played.moments}
        for picture in draw(folder, played.prometheus.url, logs, wanted):
            print(picture.shot.out, *picture.errors)
    if chosen.readme:
        for name in PICTURES:
            shutil.copyfile(chosen.folder / f"{name}.png", DASHBOARDS / "pictures" / f"{name}.png")


if __name__ == "__main__":
    asyncio.run(main())
