"""Callback that writes architectures as JSON files during a search."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from a2d_lightning.callbacks.search_only import search_module
from a2d_lightning.runtime.real_run import leaves_files


class ArchitectureCheckpoint(L.Callback):
    """Writes the derived architecture of a search into ``run_dir/architectures``.

    ``step-<env_steps>.json`` and ``last.json`` are written at every evaluation, ``last.json`` also at the end and when
    the run is interrupted, and ``best.json`` when the supernet's score is the best so far. Only rank 0 writes.
    """

    def __init__(self) -> None:
        self.best_score = float("-inf")
        self._searching = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that the stage is a search.

        Raises:
            SettingError: If it is not.
        """
        search_module(self, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Enable writing on exceptions: an earlier failure must not overwrite the files of a previous run."""
        self._searching = True

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the current architecture; also as ``best.json`` if the supernet's score is the best so far."""
        if trainer.state.fn != TrainerFn.FITTING or not leaves_files(trainer):
            return
        self.write_architecture(trainer, pl_module, f"step-{search_module(self, pl_module).env_steps:012d}")
        self.write_architecture(trainer, pl_module, "last")
        score = float(trainer.callback_metrics["val/score"])
        if score > self.best_score:
            self.best_score = score
            self.write_architecture(trainer, pl_module, "best")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write ``last.json`` at the end."""
        if leaves_files(trainer):
            self.write_architecture(trainer, pl_module, "last")
        self._searching = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write ``last.json`` on Ctrl-C, SIGTERM and errors."""
        if self._searching and leaves_files(trainer):
            self.write_architecture(trainer, pl_module, "last")

    def state_dict(self) -> dict[str, Any]:
        """Return the best score, for a resumed run."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score."""
        self.best_score = state_dict["best_score"]

    @rank_zero_only
    def write_architecture(self, trainer: L.Trainer, pl_module: L.LightningModule, name: str) -> None:
        """Derive the architecture and write it to ``run_dir/architectures/<name>.json``."""
        folder = Path(trainer.default_root_dir) / "architectures"
        search_module(self, pl_module).derive().save(folder / f"{name}.json")
