"""Writes the dashboards as Grafana's JSON: `python -m dashboards.generate`.

The files are committed, because Grafana reads files. A test checks that they are up to date.
"""

from __future__ import annotations

import json
from pathlib import Path

from dashboards.one_call import one_call
from dashboards.one_queue import one_queue
from dashboards.overview import overview
from dashboards.panels import Json

FOLDER = Path(__file__).parent / "grafana" / "dashboards"


def dashboards() -> dict[Path, Json]:
    """Every dashboard, by the name of its file."""
    return {FOLDER / f"{board['uid']}.json": board for board in (overview(), one_queue(), one_call())}


def as_text(board: Json) -> str:
    return json.dumps(board, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, board in dashboards().items():
        path.write_text(as_text(board), encoding="utf-8")


if __name__ == "__main__":
    main()
