"""Callback that detects failed processes and diverged parameters in a distributed run."""

import hashlib
import threading
from typing import Any, cast

import lightning as L
import torch.distributed as dist

from a2d_lightning.runtime.distributed import all_gather_objects
from a2d_lightning.runtime.errors import RunFailedError, SettingError
from a2d_lightning.runtime.heartbeats import Heartbeats
from a2d_lightning.runtime.signals import Interrupted


class RankGuard(L.Callback):
    """Terminates all processes with a message if one fails, and compares the parameters of the processes.

    Has no effect in a run of one process.

    Args:
        timeout_seconds: Seconds without a heartbeat after which a process counts as failed; at least 2.
        compare_every_rollouts: Rollouts between two bitwise comparisons of weights and alpha.

    Raises:
        SettingError: If an argument is out of range.
    """

    def __init__(self, timeout_seconds: float = 30.0, compare_every_rollouts: int = 100) -> None:
        if timeout_seconds < 2 or compare_every_rollouts < 1:
            raise SettingError(
                f"RankGuard: timeout_seconds {timeout_seconds} must be 2 at least and compare_every_rollouts "
                f"{compare_every_rollouts} 1 at least."
            )
        self.timeout_seconds = timeout_seconds
        self.compare_every_rollouts = compare_every_rollouts
        self._heartbeats: Heartbeats | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the heartbeats."""
        if trainer.world_size > 1:
            self._heartbeats = Heartbeats(self.timeout_seconds)
            _take_over_from_lightning(self._heartbeats)

    def on_train_batch_end(self, trainer: Any, pl_module: L.LightningModule, *_: Any) -> None:
        """Compare the parameters at the interval.

        Raises:
            RunFailedError: If the parameters of a process differ from those of rank 0.
        """
        rollouts = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if trainer.world_size > 1 and rollouts % self.compare_every_rollouts == 0:
            hashes = all_gather_objects(_hash_of_parameters(pl_module))
            others = [str(rank) for rank, its in enumerate(hashes) if its != hashes[0]]
            if others:
                raise RunFailedError(
                    f"the parameters of rank {', '.join(others)} differ from those of rank 0 after {rollouts:,} "
                    "rollouts: a gradient was not shared; go on with --ckpt_path last, which holds rank 0's."
                )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the heartbeats after all processes have finished."""
        if self._heartbeats is not None:
            dist.barrier()
            self._heartbeats.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Report the error to the other processes, except for an interruption or a RunFailedError."""
        if self._heartbeats is None:
            return
        if isinstance(exception, Interrupted | RunFailedError):
            self._heartbeats.stop()
        else:
            self._heartbeats.fail(f"{type(exception).__name__}: {str(exception).partition(chr(10))[0]}")


def _take_over_from_lightning(heartbeats: Heartbeats) -> None:
    """Suspend Lightning's observer of child processes while ``heartbeats`` are active.

    The observer checks for dead child processes every five seconds and kills all processes without saying how to
    resume. It would sometimes notice a failure before the heartbeats do.
    """
    for thread in cast(list[Any], threading.enumerate()):
        if thread.name == "child-process-observer":
            look = thread._run
            thread._run = lambda look=look: not heartbeats.listening and look()


def _hash_of_parameters(module: L.LightningModule) -> str:
    digest = hashlib.sha256()
    for parameter in module.parameters():
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
