"""Callback that saves checkpoints between rollouts and stops a run after a signal."""

import itertools
import os
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from a2d_lightning.runtime import lightning_compat
from a2d_lightning.runtime.checkpoints import LAST, UNFINISHED
from a2d_lightning.runtime.distributed import all_reduce_any
from a2d_lightning.runtime.errors import RunFailedError, SettingError
from a2d_lightning.runtime.real_run import leaves_files
from a2d_lightning.runtime.signals import INTERRUPTION, Interrupted

SLOW_SECONDS = 4.0
"""Seconds of a rollout and its update. A slower run saves every rollout: it could not finish one after a signal."""


class RunCheckpoint(Checkpoint):
    """Saves ``checkpoints/last.ckpt``, its previous versions ``last-1.ckpt``, ``last-2.ckpt``, and ``best.ckpt``.

    ``best.ckpt`` has the highest score in an evaluation. ``last.ckpt`` is saved when a run begins, every
    ``every_minutes``, before and after each evaluation, at the end, and on SIGTERM, SIGINT (Ctrl-C) or SIGUSR1, which
    stop the run. Resuming is bit-exact on CPU: an interrupted run ends in the same state as an uninterrupted one (same
    machine, processes and threads).

    Lightning's ModelCheckpoint is not used: it cannot save between two rollouts, keeps no previous versions of a file,
    and deletes files that the content of a checkpoint names.

    Args:
        every_minutes: Minutes between two saves; 0 saves after every rollout.
        keep: Number of versions of ``last.ckpt`` to keep, the newest included.
        monitor: Metric that selects ``best.ckpt``; higher is better.

    Raises:
        SettingError: If an argument is out of range.
    """

    def __init__(self, every_minutes: float = 10.0, keep: int = 3, monitor: str = "val/score") -> None:
        if every_minutes < 0 or keep < 1:
            raise SettingError(
                f"RunCheckpoint: every_minutes {every_minutes} must be at least 0, and keep {keep} at least 1."
            )
        self.every_minutes = every_minutes
        self.keep = keep
        self.monitor = monitor
        self.best_score = float("-inf")
        self._evaluated = self._evaluating = self._ended_early = self._catches = False
        self._saved_at = self._rollout_began_at = 0.0

    def on_train_start(self, trainer: Any, pl_module: L.LightningModule) -> None:
        """Start the clock, replace Lightning's signal handlers, and forward signals to processes it launched."""
        self._rollout_began_at = time.monotonic()
        # saving at the start reveals write errors early; on resume it would rotate out an older checkpoint
        self._saved_at = self._rollout_began_at if trainer.ckpt_path else float("-inf")
        self._evaluated = self._ended_early = False
        lightning_compat.count_no_batch_twice(trainer)
        self._catches = self._catches or not INTERRUPTION.is_catching
        INTERRUPTION.catch_signals()  # here, because Lightning installs its handlers before this hook
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if environment is not None and not environment.creates_processes_externally:
            INTERRUPTION.on_signal = trainer.strategy.launcher.kill
            if trainer.local_rank > 0:
                # with another status Lightning would kill the first process, whose exit status the scheduler sees
                INTERRUPTION.exit_status = 0

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore the previous signal handlers."""
        self._leave_signals()

    def _leave_signals(self) -> None:
        """Restore signal handlers unless the command line replaced them; Lightning then restores those it replaced."""
        if self._catches:
            INTERRUPTION.restore_handlers()
            self._catches = False

    def between_rollouts(self, trainer: L.Trainer) -> None:
        """Save if a save is due or a signal was received; the data module calls this before each rollout.

        Raises:
            Interrupted: If a process received a stop signal; the run is saved first.
        """
        now = time.monotonic()
        slow = now - self._rollout_began_at > SLOW_SECONDS
        due = self._evaluated or slow or now - self._saved_at >= 60 * self.every_minutes
        # a signal or a due save in one process applies to all
        flags = torch.tensor([bool(INTERRUPTION.received), due], device=trainer.strategy.root_device)
        asked, due = all_reduce_any(flags).tolist()
        if asked or due:
            self._save(trainer)
        self._evaluated = False
        self._rollout_began_at = time.monotonic()
        if asked:
            raise Interrupted(INTERRUPTION.received or "a signal to another process")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save before an evaluation, which can take minutes."""
        if trainer.state.fn == TrainerFn.FITTING and leaves_files(trainer):
            lightning_compat.restart_evaluation(trainer)  # undo on_save_checkpoint
            self._evaluating = True
            self._save(trainer)
            self._evaluating = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save ``best.ckpt`` if the score is the best so far or the file is missing.

        Raises:
            SettingError: If the evaluation does not log ``monitor``.
        """
        if trainer.state.fn != TrainerFn.FITTING or not leaves_files(trainer):
            return
        if self.monitor not in trainer.callback_metrics:
            raise SettingError(
                f"RunCheckpoint: monitor {self.monitor!r} is not logged by evaluations; use val/score, or in a search "
                "val/derived_score."
            )
        score = float(trainer.callback_metrics[self.monitor])
        path = self._folder(trainer) / "best.ckpt"
        lost = trainer.is_global_zero and not path.is_file()  # deleted by a user
        if score > self.best_score or all_reduce_any(torch.tensor([lost], device=trainer.strategy.root_device)).item():
            self.best_score = score
            with INTERRUPTION.saving:
                trainer.save_checkpoint(path, weights_only=False)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reset the mark of an epoch that ended early."""
        self._ended_early = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Request a save before the next rollout, and note whether the epoch ended early."""
        self._evaluated = True
        self._ended_early = lightning_compat.batches_started(trainer) < trainer.num_training_batches

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the final state.

        Raises:
            RunFailedError: If the checkpoint cannot be written.
        """
        if not self._save(trainer):
            raise RunFailedError(
                f"{self._folder(trainer)}: the end of the run could not be saved; free disk space and resume with "
                "--ckpt_path last."
            )
        self._leave_signals()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Correct the saved progress of Lightning's loops for a resume.

        A run saved before an evaluation must evaluate on resume, so the evaluation is marked as started. A run that
        ended inside an epoch (``max_steps``, ``max_time``, ``should_stop``, a budget that is raised later) must
        continue inside that epoch.
        """
        if self._evaluating:
            lightning_compat.mark_evaluation_as_started(checkpoint)
        if self._ended_early:
            lightning_compat.mark_epoch_as_unfinished(checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """Return the best score, for a resumed run."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score."""
        self.best_score = state_dict["best_score"]

    def _folder(self, trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints"

    def _save(self, trainer: L.Trainer) -> bool:
        """Save the run unless it is a dry run; return False if the checkpoint could not be written."""
        if not leaves_files(trainer):
            return True
        folder = self._folder(trainer)
        new = folder / UNFINISHED
        with INTERRUPTION.saving:
            for logger in trainer.loggers:
                logger.save()  # a resumed run needs the metrics up to this point
            if trainer.is_global_zero:
                new.unlink(missing_ok=True)  # left by an interrupted save
            trainer.save_checkpoint(new, weights_only=False)
            saved = not trainer.is_global_zero or new.is_file()
            if trainer.is_global_zero and saved:  # on a full disk the old checkpoints stay
                names = [f"{LAST}.ckpt", *(f"{LAST}-{age}.ckpt" for age in range(1, self.keep))]
                for newer, older in reversed(list(itertools.pairwise(names))):
                    if (folder / newer).is_file():
                        os.replace(folder / newer, folder / older)
                os.replace(new, folder / names[0])
        self._saved_at = time.monotonic()
        return saved
