"""Writes the dashboards as Grafana wants them: `python -m dashboards.generate`.

What it writes is committed, because Grafana reads files; a test holds the files to what stands here.
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
    """Every dashboard, by the file that it belongs in."""
    return {FOLDER / f"{board['uid']}.json": board for board in (overview(), one_queue(), one_call())}


def as_text(board: Json) -> str:
    return json.dumps(board, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, board in dashboards().items():
        path.write_text(as_text(board), encoding="utf-8")


if __name__ == "__main__":
    main()
