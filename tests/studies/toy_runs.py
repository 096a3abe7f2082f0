"""Tiny real runs for the runner's tests: importing this file in a run registers the toy games.

A run names :class:`Registered` among its callbacks, so that reading its configuration imports this file.
"""

import os
import time
from pathlib import Path
from typing import Any

import lightning as L
from small_supernets import counted
from toy_game import CATCH, register

from a2d_lightning.nas.search_space import Plan
from a2d_lightning.studies.job import Job

register()

TESTS = Path(__file__).parents[1]
CONFIGS = TESTS.parent / "configs"
PLAN = Plan((1,), (4,))


class Registered(L.Callback):
    """Does nothing, or takes ``seconds`` for each update."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        time.sleep(self.seconds)


def save_architecture(path: Path, operator: str = "skip") -> Path:
    architecture = counted((operator,), PLAN, (2, 12, 12))
    architecture.save(path)
    return path


def arguments(architecture: Path, seed: int = 0, seconds: float = 0.0, steps: int = 400) -> tuple[str, ...]:
    """Of a retraining on Catch without a teacher: 400 steps, an evaluation at the end."""
    return (
        *("--config", str(CONFIGS / "retrain.yaml"), "--model.architecture", str(architecture)),
        *("--model.teacher", "null", "--model.distillation", "none", "--data.game", CATCH, "--data.num_envs", "2"),
        *("--data.frames", '{"size": 12, "stack": 2, "skip": 1}', "--data.total_env_steps", str(steps)),
        *("--data.env_steps_per_epoch", str(steps), "--data.evaluation_games", "4", "--data.num_env_threads", "1"),
        *("--seed_everything", str(seed), "--trainer.log_every_n_steps", "1"),
        f'--trainer.callbacks+={{"class_path": "toy_runs.Registered", "init_args": {{"seconds": {seconds}}}}}',
    )


def environment() -> dict[str, str]:
    """Variables under which a run finds this file."""
    paths = [str(TESTS.parent), str(TESTS), str(TESTS / "studies")]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def jobs(folder: Path, count: int, seconds: float = 0.0, steps: int = 400) -> list[Job]:
    """Jobs that differ in their seed."""
    architecture = save_architecture(folder / "architecture.json")
    return [
        Job(f"seed{seed}", arguments(architecture, seed, seconds, steps), folder / "runs" / f"seed{seed}")
        for seed in range(count)
    ]
