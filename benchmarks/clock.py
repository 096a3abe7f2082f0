"""The speed of a run of ``fit``, by a callback that the command line can name."""

import time
from typing import Any

import lightning as L
import torch


class Clock(L.Callback):
    """Measures the speed from a warm-up on, and then stops the run.

    Args:
        warmup: rollouts that are not timed.
        seconds: how long to measure.
    """

    env_steps_per_second = 0.0
    peak_mebibytes = 0.0

    def __init__(self, warmup: int = 10, seconds: float = 5.0) -> None:
        self.warmup = warmup
        self.seconds = seconds
        self.rollouts = self.began = self.first = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Read the time; the next rollout's actions have waited for the GPU."""
        self.rollouts += 1
        env_steps: Any = pl_module.env_steps
        if self.rollouts == self.warmup:
            self.began, self.first = time.perf_counter(), env_steps
        elif self.rollouts > self.warmup and (took := time.perf_counter() - self.began) > self.seconds:
            Clock.env_steps_per_second = (env_steps - self.first) / took
            Clock.peak_mebibytes = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
            trainer.should_stop = True
