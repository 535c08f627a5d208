"""The README is true: its program runs as it stands, and prints what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_first_program_prints_what_the_readme_shows(tmp_path: Path) -> None:
    text = README.read_text()
    match = re.search(
        r"```python\n(import asyncio\n.*?)```\n\nIt prints:\n\n((?:    [^\n]*\n)+)", text, re.DOTALL
    )
    assert match is not None
    program = tmp_path / "first.py"
    program.write_text(match[1])
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=30)
    assert done.stderr == ""
    assert done.stdout == re.sub(r"(?m)^    ", "", match[2])
