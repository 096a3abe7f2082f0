"""A small real search that is killed over and over ends as the one that was never stopped, to the last bit."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import same

from a2d_lightning.agent_files import newest_intact
from a2d_lightning.cli.curves import read_metrics

ROOT = Path(__file__).parents[2]


def search(run_dir: Path, *args: str) -> subprocess.CompletedProcess:
    command = [
        *(sys.executable, "-m", "a2d_lightning", "fit", "--config", "configs/search.yaml"),
        *("--config", "tests/faults/small_search.yaml", "--run_dir", str(run_dir), "--ckpt_path", "auto"),
        *args,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, env=environment, check=False)


def state(run_dir: Path) -> dict:
    path = newest_intact(run_dir / "checkpoints")
    return torch.load(path, weights_only=True) if path is not None else {"env_steps": 0}


def compared(run_dir: Path) -> dict:
    """All that a finished run is, but for folders' names and times."""
    saved = state(run_dir)
    metrics = read_metrics(run_dir)
    metrics.pop("progress/env_steps_per_second", None)
    return {**saved, "metrics": metrics, "architecture": (run_dir / "architectures" / "last.json").read_text()}


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kills", [6, 54], ids=["bounded", "whole"])
def test_a_search_that_is_killed_over_and_over_loses_nothing(
    kills: int, tmp_path: Path, survived: Callable[..., None]
) -> None:
    done = search(tmp_path / "whole")
    assert done.returncode == 0, done.stderr[-3000:]
    whole = compared(tmp_path / "whole")
    assert whole["env_steps"] == 2400

    moments = random.Random(0)
    killed, run = 0, 0
    while killed < kills:
        run_dir = tmp_path / f"run{run}"
        pending: list[str] = []
        finished = False
        while not finished:
            before = state(run_dir)["env_steps"]
            when = ("anywhere", "saving", "after_game")[killed % 3]
            fatal = [
                *("--trainer.callbacks+=tests.faults.killer.Killer", "--trainer.callbacks.when", when),
                *("--trainer.callbacks.seed", str(moments.randrange(2**31))),
            ]
            done = search(run_dir, *(fatal if killed < kills else []))
            if done.returncode == -9:
                killed += 1
                pending.append(when)
                after = state(run_dir)["env_steps"]
                assert after >= before, f"killed {when}: went back from {before} to {after}"
            else:
                assert done.returncode == 0, done.stderr[-3000:]
                finished = True
        parts = compared(run_dir)
        different = [name for name in whole if not same(whole[name], parts[name])]
        for when in pending:
            survived(f"SIGKILL, {when.replace('_', ' ')}", not different, f"{different} differ in run {run}")
        run += 1
