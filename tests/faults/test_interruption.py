"""Real processes and real signals: an exit status of its own within ten seconds, and a checkpoint to go on from."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from a2d_lightning.agent_files import read_agent
from a2d_lightning.runtime.signals import INTERRUPTED
from faults.processes import left_of, start, wait_for

pytestmark = pytest.mark.slow


def end(process: subprocess.Popen) -> tuple[float, str]:
    """Seconds that it took to end, and what it said."""
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    return time.monotonic() - began, said


def trained_for(run_dir: Path) -> int:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["env_steps"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda signum: signum.name)
def test_a_signal_in_training_saves_and_ends_with_a_status_of_its_own(
    signum: signal.Signals, tmp_path: Path, survived: Callable[..., None]
) -> None:
    process = start(tmp_path)
    wait_for(lambda: any(tmp_path.glob("events*")), process)
    time.sleep(3)
    process.send_signal(signum)
    seconds, said = end(process)
    assert process.returncode == INTERRUPTED, said
    assert seconds < 10
    assert f"interrupted by {signum.name}: resume with --ckpt_path last" in said
    assert "Traceback" not in said
    survived(f"{signum.name} in training: saved, exit status 75 within 10 s", trained_for(tmp_path) > 0)


def test_a_signal_in_an_evaluation_ends_it(tmp_path: Path, survived: Callable[..., None]) -> None:
    short = ["--data.env_steps_per_epoch", "100", "--data.evaluation_games", "8"]
    process = start(tmp_path, *short, "--trainer.callbacks+=tests.faults.interrupters.LongEvaluation")
    wait_for((tmp_path / "evaluating").exists, process)
    process.send_signal(signal.SIGTERM)
    seconds, said = end(process)
    assert process.returncode == INTERRUPTED, said
    assert seconds < 10
    survived("SIGTERM in an evaluation: likewise", trained_for(tmp_path) == 100)


def test_an_update_that_takes_longer_than_a_scheduler_waits_is_dropped(
    tmp_path: Path, survived: Callable[..., None]
) -> None:
    process = start(tmp_path, "--trainer.callbacks+=tests.faults.interrupters.LongUpdate")
    wait_for((tmp_path / "updating").exists, process)
    process.send_signal(signal.SIGTERM)
    seconds, said = end(process)
    assert process.returncode == INTERRUPTED, said
    assert seconds < 10
    assert "exceeded the grace period and was discarded" in said
    # two rollouts of 4 environments x 5 steps
    survived("SIGTERM in an update of 30 s: likewise, with the rollout before", trained_for(tmp_path) == 40)


@pytest.mark.parametrize(
    ("disk_seconds", "saved_steps"),
    # saved at the start and after the first epoch of 100 steps, which is slow: in time, one more rollout of 20 and the
    # save of the stop follow it; else nothing
    [(2.0, 120), (30.0, 0)],
)
def test_a_signal_while_a_checkpoint_is_written_leaves_a_good_one(
    disk_seconds: float, saved_steps: int, tmp_path: Path, survived: Callable[..., None]
) -> None:
    slow = json.dumps({"class_path": "tests.faults.interrupters.SlowDisk", "init_args": {"seconds": disk_seconds}})
    quick = ["--data.env_steps_per_epoch", "100", "--trainer.limit_val_batches", "0"]
    process = start(tmp_path, *quick, f"--trainer.callbacks+={slow}")
    wait_for((tmp_path / "saving").exists, process)
    process.send_signal(signal.SIGTERM)
    seconds, said = end(process)
    assert process.returncode == INTERRUPTED, said
    assert seconds < 10
    assert read_agent(tmp_path / "checkpoints" / "last.ckpt") is not None
    survived("SIGTERM while a checkpoint is written: likewise", trained_for(tmp_path) == saved_steps, said)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, survived: Callable[..., None]) -> None:
    process = start(tmp_path, "--trainer.callbacks+=tests.faults.interrupters.LongUpdate")
    wait_for((tmp_path / "updating").exists, process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    seconds, said = end(process)
    assert process.returncode == INTERRUPTED, said
    survived("second Ctrl-C: ends at once", seconds < 2)


def test_two_processes_stop_together_and_none_is_left(tmp_path: Path, survived: Callable[..., None]) -> None:
    process = start(tmp_path, "--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    wait_for(lambda: any(tmp_path.glob("events*")), process)
    time.sleep(4)
    process.send_signal(signal.SIGTERM)  # to the first one alone, as a scheduler does
    seconds, said = end(process)
    assert process.returncode == INTERRUPTED, said
    assert seconds < 10
    assert trained_for(tmp_path) > 0
    survived("SIGTERM to one of two processes: both end, none is left", not left_of(process))
