"""The checkpoints that a run is resumed from, at any rollout; and the end of a run that is asked to stop."""

import itertools
import os
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from a2d_lightning.checkpoints import LAST
from a2d_lightning.errors import SettingError
from a2d_lightning.interruption import INTERRUPTION, Interrupted
from a2d_lightning.ranks import any_rank

SLOW_SECONDS = 4.0
"""Of a rollout with its update: a slower run saves each, as it cannot finish one when it is asked to stop."""


class RunCheckpoint(Checkpoint):
    """Keeps ``checkpoints/last.ckpt``, and as ``last-1.ckpt``, ``last-2.ckpt`` what it was before.

    It saves every ``every_minutes``, before and after each evaluation, at the end, and when the run is asked to stop by
    SIGTERM, SIGINT (Ctrl-C) or SIGUSR1. A run resumed from any of them is the run that was never stopped.

    Args:
        every_minutes: between two saves.
        keep: how many are kept.
    """

    def __init__(self, every_minutes: float = 10.0, keep: int = 3) -> None:
        if every_minutes < 0 or keep < 1:
            raise SettingError(
                f"RunCheckpoint: every_minutes {every_minutes} must not be negative, and keep {keep} be 1 at least."
            )
        self.every_minutes = every_minutes
        self.keep = keep
        self._evaluated = self._evaluating = False
        self._saved_at = self._rollout_began_at = 0.0

    def on_fit_start(self, trainer: Any, pl_module: L.LightningModule) -> None:
        """Hears of signals in place of Lightning, and tells the processes that Lightning started."""
        INTERRUPTION.catch_signals()
        if trainer.strategy.launcher is not None:
            INTERRUPTION.heard = trainer.strategy.launcher.kill

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._saved_at = self._rollout_began_at = time.monotonic()
        self._evaluated = False

    def between_rollouts(self, trainer: L.Trainer) -> None:
        """Saves if it is time; called by the data when a rollout is done and the next one has not begun.

        Raises:
            Interrupted: the run was asked to stop, and what it did is saved.
        """
        now = time.monotonic()
        slow = now - self._rollout_began_at > SLOW_SECONDS
        due = self._evaluated or slow or now - self._saved_at >= 60 * self.every_minutes
        # what one process was told, all do
        flags = torch.tensor([bool(INTERRUPTION.asked_by), due], device=trainer.strategy.root_device)
        asked, due = any_rank(flags).tolist()
        if asked or due:
            self._save(trainer)
        self._evaluated = False
        self._rollout_began_at = time.monotonic()
        if asked:
            raise Interrupted(INTERRUPTION.asked_by or "a signal to another process")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves before games are played, which can take minutes."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            INTERRUPTION.check()
            self._evaluating = True
            self._save(trainer)
            self._evaluating = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Has the state after the evaluation saved, as soon as the next rollout is asked for."""
        self._evaluated = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves what the run came to."""
        self._save(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Has a run that is resumed before an evaluation play it: to Lightning, one that had begun."""
        if self._evaluating:
            games = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
            games |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}

    def _save(self, trainer: L.Trainer) -> None:
        folder = Path(trainer.default_root_dir) / "checkpoints"
        new = folder / "next.ckpt"
        with INTERRUPTION.saving:
            for logger in trainer.loggers:
                logger.save()  # what is resumed later must find the metrics up to here
            trainer.save_checkpoint(new)
            if trainer.is_global_zero and new.is_file():  # a disk that is full keeps the old ones
                names = [f"{LAST}.ckpt", *(f"{LAST}-{age}.ckpt" for age in range(1, self.keep))]
                for newer, older in reversed(list(itertools.pairwise(names))):
                    if (folder / newer).is_file():
                        os.replace(folder / newer, folder / older)
                os.replace(new, folder / names[0])
        self._saved_at = time.monotonic()
