"""Callback that measures the speed of a ``fit`` run."""

import time
from typing import Any

import lightning as L
import torch


class Clock(L.Callback):
    """Measures environment steps per second and peak GPU memory after a warm-up, then stops the run.

    Results are class attributes, since the command line creates the instance.

    Args:
        warmup: Number of untimed rollouts at the start (default: 10).
        seconds: Duration of the measurement in seconds (default: 5).
    """

    env_steps_per_second = 0.0
    """Environment steps per second of the last run."""
    peak_mebibytes = 0.0
    """Peak memory allocated by torch on the GPU in MiB, since the process started; 0 without a GPU."""

    def __init__(self, warmup: int = 10, seconds: float = 5.0) -> None:
        self.warmup = warmup
        self.seconds = seconds
        self.rollouts = self.began = self.first = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Read the time after each rollout.

        No synchronization with the GPU is needed: choosing the next rollout's actions waits for it.
        """
        self.rollouts += 1
        env_steps: Any = pl_module.env_steps
        if self.rollouts == self.warmup:
            self.began, self.first = time.perf_counter(), env_steps
        elif self.rollouts > self.warmup and (took := time.perf_counter() - self.began) > self.seconds:
            Clock.env_steps_per_second = (env_steps - self.first) / took
            Clock.peak_mebibytes = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
            trainer.should_stop = True
