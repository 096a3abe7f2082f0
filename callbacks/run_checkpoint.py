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

from a2d_lightning.runtime.checkpoints import LAST, UNFINISHED
from a2d_lightning.runtime.distributed import all_reduce_any
from a2d_lightning.runtime.errors import RunFailedError, SettingError
from a2d_lightning.runtime.real_run import leaves_files
from a2d_lightning.runtime.signals import INTERRUPTION, Interrupted

SLOW_SECONDS = 4.0
"""Of a rollout with its update: a slower run saves each, as it cannot finish one when it is asked to stop."""


class RunCheckpoint(Checkpoint):
    """Keeps ``checkpoints/last.ckpt``, as ``last-1.ckpt``, ``last-2.ckpt`` what it was before, and ``best.ckpt``.

    The best is of the evaluation with the highest score. The last is saved when a run begins, every ``every_minutes``,
    before and after each evaluation, at the end, and when the run is asked to stop by SIGTERM, SIGINT (Ctrl-C) or
    SIGUSR1. A run resumed from any of them is the run that was never stopped.

    Own code: Lightning's ModelCheckpoint cannot save between two rollouts, keeps no earlier state of a file, and
    deletes what a checkpoint's content tells it to.

    Args:
        every_minutes: between two saves.
        keep: how many are kept.
        monitor: the score.
    """

    def __init__(self, every_minutes: float = 10.0, keep: int = 3, monitor: str = "val/score") -> None:
        if every_minutes < 0 or keep < 1:
            raise SettingError(
                f"RunCheckpoint: every_minutes {every_minutes} must not be negative, and keep {keep} be 1 at least."
            )
        self.every_minutes = every_minutes
        self.keep = keep
        self.monitor = monitor
        self.best_score = float("-inf")
        self._evaluated = self._evaluating = self._ended_early = self._catches = False
        self._saved_at = self._rollout_began_at = 0.0

    def on_train_start(self, trainer: Any, pl_module: L.LightningModule) -> None:
        """Starts the clock; hears of signals in place of Lightning, and tells the processes that Lightning started."""
        self._rollout_began_at = time.monotonic()
        # a save at the start tells what cannot be saved; on resume it would push out one of the older states
        self._saved_at = self._rollout_began_at if trainer.ckpt_path else float("-inf")
        self._evaluated = self._ended_early = False
        epoch = trainer.fit_loop.epoch_loop
        if epoch.restarting and epoch.batch_progress.current.ready == 0:
            epoch.restarting = False  # to Lightning it is at the end of the epoch before, and counts that batch again
        self._catches = self._catches or not INTERRUPTION.is_catching
        INTERRUPTION.catch_signals()  # Lightning has put its own handlers in place by now
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if environment is not None and not environment.creates_processes_externally:
            INTERRUPTION.on_signal = trainer.strategy.launcher.kill
            if trainer.local_rank > 0:
                # with another status Lightning would kill the first process, whose status the scheduler sees
                INTERRUPTION.exit_status = 0

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give signals back."""
        self._leave_signals()

    def _leave_signals(self) -> None:
        """Give signals back where no command line has caught them; Lightning then puts back those it replaced."""
        if self._catches:
            INTERRUPTION.restore_handlers()
            self._catches = False

    def between_rollouts(self, trainer: L.Trainer) -> None:
        """Saves if it is time; called by the data when a rollout is done and the next one has not begun.

        Raises:
            Interrupted: the run was asked to stop, and what it did is saved.
        """
        now = time.monotonic()
        slow = now - self._rollout_began_at > SLOW_SECONDS
        due = self._evaluated or slow or now - self._saved_at >= 60 * self.every_minutes
        # what one process was told, all do
        flags = torch.tensor([bool(INTERRUPTION.received), due], device=trainer.strategy.root_device)
        asked, due = all_reduce_any(flags).tolist()
        if asked or due:
            self._save(trainer)
        self._evaluated = False
        self._rollout_began_at = time.monotonic()
        if asked:
            raise Interrupted(INTERRUPTION.received or "a signal to another process")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves before games are played, which can take minutes."""
        if trainer.state.fn == TrainerFn.FITTING and leaves_files(trainer):
            games = trainer.fit_loop.epoch_loop.val_loop
            if games.restarted_mid_evaluation:
                games.batch_progress.total.reset()  # of on_save_checkpoint: it begins anew
            self._evaluating = True
            self._save(trainer)
            self._evaluating = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the best so far."""
        if trainer.state.fn != TrainerFn.FITTING or not leaves_files(trainer):
            return
        if self.monitor not in trainer.callback_metrics:
            raise SettingError(
                f"RunCheckpoint: monitor {self.monitor!r} is not among what evaluations log; take val/score, or in a "
                "search val/derived_score."
            )
        score = float(trainer.callback_metrics[self.monitor])
        path = self._folder(trainer) / "best.ckpt"
        lost = trainer.is_global_zero and not path.is_file()  # somebody has deleted it
        if score > self.best_score or all_reduce_any(torch.tensor([lost], device=trainer.strategy.root_device)).item():
            self.best_score = score
            with INTERRUPTION.saving:
                trainer.save_checkpoint(path, weights_only=False)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget how the last epoch ended."""
        self._ended_early = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Has the state after the evaluation saved, as soon as the next rollout is asked for."""
        self._evaluated = True
        self._ended_early = trainer.fit_loop.epoch_loop.batch_progress.current.ready < trainer.num_training_batches

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves what the run came to.

        Raises:
            RunFailedError: it could not be written.
        """
        if not self._save(trainer):
            raise RunFailedError(
                f"{self._folder(trainer)}: the end of the run could not be saved; make room and go on with --ckpt_path "
                "last."
            )
        self._leave_signals()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Correct what Lightning's loops would do on resume.

        A run that is saved before an evaluation plays it: to Lightning, one that had begun. A run that was ended inside
        an epoch (``max_steps``, ``max_time``, ``should_stop``, a budget that is raised later) goes on inside of it.
        """
        loops = checkpoint["loops"]["fit_loop"]
        games = loops["epoch_loop.val_loop.batch_progress"]["total"]
        if self._evaluating:
            games |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        if self._ended_early:
            games |= dict.fromkeys(games, 0)
            for progress in loops["epoch_progress"].values():
                progress |= {"processed": progress["started"] - 1, "completed": progress["started"] - 1}

    def state_dict(self) -> dict[str, Any]:
        """The best score, for a resumed run."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best score."""
        self.best_score = state_dict["best_score"]

    def _folder(self, trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints"

    def _save(self, trainer: L.Trainer) -> bool:
        """Save the run, if it is a real one; return False where the disk is full."""
        if not leaves_files(trainer):
            return True
        folder = self._folder(trainer)
        new = folder / UNFINISHED
        with INTERRUPTION.saving:
            for logger in trainer.loggers:
                logger.save()  # what is resumed later must find the metrics up to here
            if trainer.is_global_zero:
                new.unlink(missing_ok=True)  # of a save that was cut short
            trainer.save_checkpoint(new, weights_only=False)
            saved = not trainer.is_global_zero or new.is_file()
            if trainer.is_global_zero and saved:  # a disk that is full keeps the old ones
                names = [f"{LAST}.ckpt", *(f"{LAST}-{age}.ckpt" for age in range(1, self.keep))]
                for newer, older in reversed(list(itertools.pairwise(names))):
                    if (folder / newer).is_file():
                        os.replace(folder / newer, folder / older)
                os.replace(new, folder / names[0])
        self._saved_at = time.monotonic()
        return saved
