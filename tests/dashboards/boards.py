"""The committed dashboards, by name, and their panels, by title."""

from __future__ import annotations

from typing import Any

from dashboards.generate import dashboards

__all__ = ["BOARDS", "CALL", "OVERVIEW", "QUEUE", "Board", "panel"]

BOARDS = {path.stem: board for path, board in dashboards().items()}
OVERVIEW, QUEUE, CALL = "genesis-overview", "genesis-queue", "genesis-call"

Board = dict[str, Any]


def panel(board: Board, title: str) -> Board:
    found: Board
    (found,) = [each for each in board["panels"] if each["title"] == title]
    return found
