"""Run the tests of the connection with the oldest and the newest redis-py: one command, no argument.

    python -m tests.backends.redis_py_versions

The connection takes the transport over from redis-py, and redis-py has no public name for it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
VERSIONS = {
    "the oldest": ["redis==5.2.0", "hiredis==3.2.0"],
    "the newest": ["redis", "hiredis"],
}
TESTS = ["test_connecting.py", "test_connection.py", "test_link.py", "test_router.py"]


def main() -> int:
    failed = 0
    for name, packages in VERSIONS.items():
        with tempfile.TemporaryDirectory(prefix="genesis-redis-py-") as folder:
            venv.create(folder, with_pip=True)
            python = str(Path(folder) / "bin" / "python")
            install = [python, "-m", "pip", "install", "-q", "--upgrade", "-e", f"{ROOT}[dev]"]
            subprocess.run([*install, *packages], check=True)
            print(f"== {name}: {', '.join(packages)}", flush=True)
            tests = [str(ROOT / "tests" / "backends" / test) for test in TESTS]
            run = subprocess.run([python, "-m", "pytest", "-q", *tests], cwd=ROOT, check=False)
            failed += run.returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
