"""The layer wraps every operation of the protocol: at import, and as mypy sees it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

import genesis
from genesis.backends.protocol import QueueBackend
from genesis.observability import layer, names
from genesis.observability.layer import ObservedBackend


def import_layer_again() -> None:
    """Run the module again under another name, as an import would."""
    spec = importlib.util.spec_from_file_location("layer_again", layer.__file__)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


async def pause(self: Any, queue_id: str) -> None:
    """An operation that the layer does not know."""


def test_a_layer_that_misses_an_operation_is_refused_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the protocol has one operation more, the import fails with the name of the operation."""
    import_layer_again()
    monkeypatch.setattr(QueueBackend, "pause", pause, raising=False)
    with pytest.raises(TypeError, match=r"does not wrap: pause"):
        import_layer_again()


def test_a_wrapper_that_was_removed_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check looks at each of the layer's own methods."""
    for operation in get_args(names.Operation):
        with monkeypatch.context() as patch:
            patch.delattr(ObservedBackend, operation)
            with pytest.raises(TypeError, match=f"does not wrap: {operation}"):
                layer._check_complete()


def test_an_operation_without_a_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation that is wrapped but not in names.Operation is refused: dashboards would miss it."""
    monkeypatch.setattr(QueueBackend, "pause", pause, raising=False)
    monkeypatch.setattr(ObservedBackend, "pause", pause, raising=False)
    with pytest.raises(TypeError, match=r"differ in: pause"):
        layer._check_complete()


@pytest.mark.slow
def test_mypy_refuses_a_layer_that_misses_an_operation(tmp_path: Path) -> None:
    """In a copy whose protocol has one operation more, mypy --strict rejects the layer."""
    package = tmp_path / "genesis"
    shutil.copytree(Path(genesis.__file__).parent, package)
    protocol = package / "backends" / "protocol.py"
    assert check_types(tmp_path) == (0, [])  # the copy as it is
    text = protocol.read_text()
    anchor = "    async def ping(self) -> None:\n"
    assert text.count(anchor) == 1
    more = "    async def pause(self, queue_id: str) -> None:\n        raise NotImplementedError\n\n"
    protocol.write_text(text.replace(anchor, more + anchor))
    status, objections = check_types(tmp_path)
    assert status == 1
    assert [line for line in objections if "layer.py" in line and "ObservedBackend" in line]


def check_types(folder: Path) -> tuple[int, list[str]]:
    """mypy --strict on the observing layer of the package in `folder`: exit status, errors."""
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(folder / "cache")]
    command += ["--config-file", "", "-m", "genesis.observability.layer"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110)
    return done.returncode, [line for line in done.stdout.splitlines() if ": error:" in line]
