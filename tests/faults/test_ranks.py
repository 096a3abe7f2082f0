"""Processes that must not outlive each other, and must stay equal. Two of them, gloo, on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from a2d_lightning.runtime.signals import INTERRUPTED
from faults.processes import left_of, start, wait_for

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TWO = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]


def child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    assert len(children) == 1, children
    return int(children[0])


@pytest.mark.parametrize("killed_rank", [0, 1])
def test_a_killed_rank_ends_the_other_one_which_names_it(
    killed_rank: int, tmp_path: Path, survived: Callable[..., None]
) -> None:
    process = start(tmp_path, *TWO)
    wait_for(lambda: any(tmp_path.glob("events*")), process)
    time.sleep(4)
    other = child_of(process.pid)
    os.kill([process.pid, other][killed_rank], signal.SIGKILL)
    began = time.monotonic()
    _, said = process.communicate(timeout=60)  # both share the pipe: it closes with the last of them
    seconds = time.monotonic() - began
    named = f"error: rank {killed_rank} (process {[process.pid, other][killed_rank]} on " in said
    assert not left_of(process)
    survived("SIGKILL of one rank of two: the other ends and names it", named and seconds < 60, said[-3000:])


def test_a_rank_whose_weights_differ_is_named(tmp_path: Path, survived: Callable[..., None]) -> None:
    guard = {"class_path": "a2d_lightning.callbacks.RankGuard", "init_args": {"compare_every_rollouts": 5}}
    callbacks = json.dumps([guard, {"class_path": "tests.rank_probe.OddRank"}])
    process = start(tmp_path, *TWO, f"--trainer.callbacks={callbacks}")
    _, said = process.communicate(timeout=120)
    named = "error: the parameters of rank 1 differ from those of rank 0 after 5 rollouts" in said
    survived("weights of one rank altered: named", named and process.returncode == 1, said[-3000:])


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def search_of(run_dir: Path, total_env_steps: int) -> list[str]:
    """A search by two processes of 4 environments x 5 steps."""
    return [
        *("--config", "configs/search.yaml", "--config", "configs/scale/smoke.yaml", "--run_dir", str(run_dir)),
        *("--data.total_env_steps", str(total_env_steps), "--data.env_steps_per_epoch", str(total_env_steps // 2)),
        *("--trainer.accelerator", "cpu"),
    ]


def test_two_machines_are_one_run(tmp_path: Path) -> None:
    """Two groups of processes that know each other by address and port only, as torchrun starts them on machines."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER": "127.0.0.1", "NODES": "2", "PORT": str(free_port())}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    nodes = [
        subprocess.Popen(
            ["bash", "docs/examples/torchrun.sh", *search_of(tmp_path, 240)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | {"NODE": str(node)},
        )
        for node in (0, 1)
    ]
    said = [node.communicate(timeout=250)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said[0][-3000:]
    check_two_processes_finished(tmp_path, 240)


def check_two_processes_finished(run_dir: Path, total_env_steps: int) -> None:
    saved = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["env_steps"] == total_env_steps
    assert saved["weight_updates"] == total_env_steps // 40  # 2 x 4 environments x 5 steps each
    assert len(saved["RolloutDataModule"]["processes"]) == 2


def test_a_slurm_job_that_runs_out_of_time_is_requeued_and_goes_on(
    tmp_path: Path, survived: Callable[..., None]
) -> None:
    """SLURM itself is not here: tests/faults/slurm starts tasks with the variables that it sets."""
    log = tmp_path / "log"
    log.touch()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
        "PATH": f"{Path(__file__).parent / 'slurm'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        **{"OMP_NUM_THREADS": "1", "FAKE_SLURM_LOG": str(log), "MASTER_PORT": str(free_port())},
        **{"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "a2d", "SLURM_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2"},
        **{"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "1"},
    }

    def submit(total_env_steps: int) -> subprocess.Popen:
        command = ["bash", "docs/examples/slurm.sh", *search_of(tmp_path / "run", total_env_steps)]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment)

    job = submit(1200)
    wait_for((tmp_path / "run" / "metrics.csv").is_file, job)
    srun = int(log.read_text().removeprefix("srun "))
    os.kill(srun, signal.SIGUSR1)
    began = time.monotonic()
    _, said = job.communicate(timeout=60)
    in_time = time.monotonic() - began < 10
    requeued = log.read_text().splitlines()[1:] == ["scontrol requeue 7"]
    assert 0 < torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["env_steps"] < 1200
    again = submit(1200)
    _, said_again = again.communicate(timeout=250)
    ok = in_time and requeued and job.returncode == INTERRUPTED and again.returncode == 0
    survived("USR1 to a SLURM job of two tasks: saved, requeued, gone on", ok, said[-2000:] + said_again[-2000:])
    check_two_processes_finished(tmp_path / "run", 1200)
