"""Processes that must not outlive each other, and must stay equal. Two of them, gloo, on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from faults.test_interruption import left_of, start, wait_for

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TWO = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]


def child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == 1, children
    return int(children[0])


@pytest.mark.parametrize("killed_rank", [0, 1])
def test_a_killed_rank_ends_the_other_one_which_names_it(killed_rank, tmp_path, survived):
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


def test_a_rank_whose_weights_differ_is_named(tmp_path, survived):
    guard = {"class_path": "callbacks.RankGuard", "init_args": {"compare_every_rollouts": 5}}
    callbacks = json.dumps([guard, {"class_path": "tests.rank_probe.OddRank"}])
    process = start(tmp_path, *TWO, f"--trainer.callbacks={callbacks}")
    _, said = process.communicate(timeout=120)
    named = "error: the parameters of rank 1 differ from those of rank 0 after 5 rollouts" in said
    survived("weights of one rank altered: named", named and process.returncode == 1, said[-3000:])


def test_two_machines_are_one_run(tmp_path):
    """Two groups of processes that know each other by address and port only, as torchrun starts them on machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER": "127.0.0.1", "NODES": "2", "PORT": str(port)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    nodes = [
        subprocess.Popen(
            [
                *("bash", "docs/examples/torchrun.sh", "--config", "configs/search.yaml"),
                *("--config", "configs/scale/smoke.yaml", "--run_dir", str(tmp_path), "--data.total_env_steps", "240"),
                *("--data.env_steps_per_epoch", "120", "--trainer.accelerator", "cpu"),
            ],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | {"NODE": str(node)},
        )
        for node in (0, 1)
    ]
    said = [node.communicate(timeout=250)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said[0][-3000:]
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["env_steps"] == 240
    assert saved["weight_updates"] == 6  # 2 x 4 environments x 5 steps each
    assert len(saved["RolloutDataModule"]["processes"]) == 2
