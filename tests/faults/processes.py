"""Runs of ``fit`` in processes of their own."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def start(run_dir: Path, *args: str) -> subprocess.Popen:
    command = [
        *(sys.executable, "-m", "a2d_lightning", "fit", "--config", "configs/teacher.yaml"),
        *("--config", "configs/scale/smoke.yaml", "--run_dir", str(run_dir), "--data.total_env_steps", "1000000"),
        *("--data.env_steps_per_epoch", "1000000", *args),
    ]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    errors: Any = process.stderr
    while not condition():
        assert process.poll() is None, errors.read()[-3000:]
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.05)


def left_of(process: subprocess.Popen) -> list[str]:
    """Return the ids of child processes that still run after five seconds, without zombies."""
    for _ in range(50):
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[2]) == process.pid and fields[0] not in "ZX":
                    found.append(path.parent.name)
        if not found:
            return []
        time.sleep(0.1)
    return found
