"""Environments that fail or hang become an error that names them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]

HANGING_EMULATOR = """
from ale_py.vector_env import AtariVectorEnv
from a2d_lightning.rollouts.atari import atari_vector
from a2d_lightning.rollouts.games import FrameSettings
from a2d_lightning.runtime.watchdog import Watchdog
vector = atari_vector("pong", 2, FrameSettings(), 1, 30)
vector.reset()
with Watchdog("data.game: an environment of pong (rank 0)", 1.0):
    vector.recv()  # nobody was sent an action
"""


def test_an_emulator_that_never_answers_ends_the_process(survived: Callable[..., None]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGING_EMULATOR], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    said = "error: data.game: an environment of pong (rank 0) did not respond for 1 s" in done.stderr
    survived("emulator or game hangs: named", said and done.returncode == 1, done.stderr)


def test_calls_in_time_are_left_alone() -> None:
    code = "import time\nfrom a2d_lightning.runtime.watchdog import Watchdog\ndog = Watchdog('x', 1.0)\n"
    code += "for _ in range(8):\n    with dog:\n        time.sleep(0.3)\ntime.sleep(2.5)\nprint('done')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "done\n"


@pytest.mark.parametrize(
    ("game", "said"),
    [
        ("a2d/Breaks-v0", "data.game: an environment of a2d/Breaks-v0 (rank 0) failed: ZeroDivisionError: "),
        ("a2d/Hangs-v0", "data.game: an environment of a2d/Hangs-v0 (rank 0) did not respond for 2 s"),
    ],
)
def test_a_game_that_fails_is_named_in_one_line(
    game: str, said: str, tmp_path: Path, survived: Callable[..., None]
) -> None:
    code = f"""
from toy_game import register
register()
from a2d_lightning.cli.main import main
main(["fit", "--config", "configs/teacher.yaml", "--config", "configs/scale/smoke.yaml", "--run_dir", {str(tmp_path)!r},
      "--data.game", {game!r}, "--data.frames.skip", "1", "--data.env_timeout_seconds", "2"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    ok = done.returncode == 1 and len(errors) == 1 and errors[0].startswith(f"error: {said}")
    fault = "emulator or game hangs: named" if "Hangs" in game else "game raises an error: named"
    survived(fault, ok and "Traceback" not in done.stderr, done.stderr[-3000:])
