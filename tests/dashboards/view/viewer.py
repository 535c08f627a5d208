"""Draws the committed dashboards with Grafana's own components, and says what stands in them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.telemetry_names import DASHBOARDS

__all__ = ["BOARDS", "WIDTHS", "Picture", "Shot", "Shown", "draw", "install", "missing"]

BOARDS = ("genesis-overview", "genesis-queue", "genesis-call")
WIDTHS = (1600, 1366)
HERE = Path(__file__).parent
FONTS = Path("/usr/share/fonts/opentype/inter")


class Shot(NamedTuple):
    """A dashboard to draw. Without `out` nothing is written."""

    dashboard: str
    width: int
    query: dict[str, str]
    """Parameters of the page, see README.md."""
    out: str = ""


class Shown(NamedTuple):
    """A value in a tile, or in a cell of a table."""

    name: str
    """The series, or the column."""
    text: str
    number: float | None
    color: str | None


class Picture(NamedTuple):
    """What stands in a dashboard as it was drawn."""

    shot: Shot
    panels: dict[str, list[Shown]]
    cut: list[str]
    """Texts that end in an ellipsis, and tables that are wider than their panel."""
    errors: list[str]

    def bad(self) -> list[tuple[str, str, str]]:
        """Panel, name and text of every value that is not on a plain ground."""
        return [
            (panel, each.name, each.text)
            for panel, values in self.panels.items()
            for each in values
            if each.color is not None and not is_plain(each.color)
        ]


def is_plain(color: str) -> bool:
    """Whether a colour is Grafana's `transparent`."""
    return color.replace(" ", "") in ("#00000000", "rgba(0,0,0,0)", "transparent")


def missing() -> str:
    """What the machine lacks for drawing; empty if nothing."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "there is no Node with npm"
    if _chromium() is None:
        return "there is no Chromium (Debian: apt-get install chromium)"
    if not FONTS.is_dir():
        return "the typeface Inter is missing (Debian: apt-get install fonts-inter)"
    return ""


def install() -> Path:
    """The folder with the built page; made on the first call, in a minute and 630 MB.

    Raises:
        RuntimeError: npm cannot install what `package-lock.json` names.
    """
    sources = sorted(
        path for path in HERE.rglob("*") if path.suffix in {".json", ".mjs", ".ts", ".tsx"}
    )
    lock = hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "genesis-dashboard-view" / lock
    for source in sources:
        target = folder / source.relative_to(HERE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    if not (folder / "node_modules" / ".package-lock.json").exists():
        _run(folder, "npm", "ci", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund")
        _run(folder, "node", "node_modules/esbuild/install.js")
    _run(folder, "node", "build.mjs")
    return folder


def draw(
    folder: Path, prometheus: str, logs: Mapping[str, Sequence[str]], shots: Sequence[Shot]
) -> Iterator[Picture]:
    """Draw each, in turn.

    Args:
        folder: of `install`.
        prometheus: the url of the Prometheus to ask.
        logs: files of JSON lines, by job; they stand in for Loki.
        shots: what to draw.
    """
    order = {
        "prometheus": prometheus,
        "folder": str(DASHBOARDS / "grafana" / "dashboards"),
        "chromium": _chromium(),
        "logs": {job: list(files) for job, files in logs.items()},
        "shots": [shot._asdict() for shot in shots],
    }
    process = subprocess.Popen(
        ["node", str(folder / "draw.mjs")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write(json.dumps(order))
        process.stdin.close()
        for shot, line in zip(shots, process.stdout, strict=False):
            yield _picture(shot, json.loads(line))
    if process.returncode:
        raise RuntimeError(f"drawing ended with {process.returncode}")


def _picture(shot: Shot, seen: dict[str, Any]) -> Picture:
    panels = {panel["title"]: [Shown(**each) for each in panel["shown"]] for panel in seen["panels"]}
    return Picture(shot, panels, seen["cut"], seen["errors"])


def _chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {(done.stdout + done.stderr)[-1000:]}")
