"""Callbacks for the tests of interrupted runs."""

import time
from pathlib import Path

import lightning as L


class LongUpdate(L.Callback):
    """Two updates of 4.5 seconds, then one of half a minute."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2:
            (Path(trainer.default_root_dir) / "updating").touch()
        time.sleep(4.5 if batch_idx < 2 else 30.0)  # goes on when a signal's handler returns


class LongEvaluation(L.Callback):
    """Tells when an evaluation has begun."""

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        (Path(trainer.default_root_dir) / "evaluating").touch()
