"""Callback that detects failed processes and diverged parameters in a distributed run."""

import hashlib
from typing import Any

import lightning as L
import torch.distributed as dist

from a2d_lightning.runtime.distributed import all_gather_objects
from a2d_lightning.runtime.errors import RunFailedError, SettingError
from a2d_lightning.runtime.heartbeats import Heartbeats
from a2d_lightning.runtime.lightning_compat import batches_of_run, suspend_child_observer
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
                f"RankGuard: timeout_seconds {timeout_seconds} must be at least 2 and compare_every_rollouts "
                f"{compare_every_rollouts} at least 1."
            )
        self.timeout_seconds = timeout_seconds
        self.compare_every_rollouts = compare_every_rollouts
        self._heartbeats: Heartbeats | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the heartbeats."""
        if trainer.world_size > 1:
            self._heartbeats = Heartbeats(self.timeout_seconds)
            heartbeats = self._heartbeats
            suspend_child_observer(lambda: heartbeats.listening)

    def on_train_batch_end(self, trainer: Any, pl_module: L.LightningModule, *_: Any) -> None:
        """Compare the parameters at the interval.

        Raises:
            RunFailedError: If the parameters of a process differ from those of rank 0.
        """
        rollouts = batches_of_run(trainer)
        if trainer.world_size > 1 and rollouts % self.compare_every_rollouts == 0:
            hashes = all_gather_objects(_hash_of_parameters(pl_module))
            others = [str(rank) for rank, its in enumerate(hashes) if its != hashes[0]]
            if others:
                raise RunFailedError(
                    f"the parameters of rank {', '.join(others)} differ from those of rank 0 after {rollouts:,} "
                    "rollouts: a gradient was not shared; resume with --ckpt_path last, which contains the "
                    "parameters of rank 0."
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


def _hash_of_parameters(module: L.LightningModule) -> str:
    digest = hashlib.sha256()
    for parameter in module.parameters():
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
