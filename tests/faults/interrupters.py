"""Callbacks for the tests of interrupted runs."""

import os
import time
from pathlib import Path
from typing import Any

import lightning as L


class LongUpdate(L.Callback):
    """Two updates of 4.5 seconds, then one of half a minute."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            (Path(trainer.default_root_dir) / "updating").touch()
        time.sleep(4.5 if batch_idx < 2 else 30.0)  # goes on when a signal's handler returns


class LongEvaluation(L.Callback):
    """Tells when an evaluation has begun."""

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        (Path(trainer.default_root_dir) / "evaluating").touch()


class SlowDisk(L.Callback):
    """The second checkpoint takes ``seconds`` from its first byte to its name."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.saves = 0

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        real = os.fsync

        def slowly(fd: Any) -> None:
            if Path(f"/proc/self/fd/{fd}").resolve().name == ".next.ckpt.part":
                self.saves += 1
                if self.saves == 2:
                    (Path(trainer.default_root_dir) / "saving").touch()
                    time.sleep(self.seconds)
            real(fd)

        os.fsync = slowly
