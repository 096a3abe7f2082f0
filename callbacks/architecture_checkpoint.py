"""Architectures as JSON files while a search runs."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from a2d_lightning.runtime.real_run import leaves_files
from callbacks.search_only import search_module


class ArchitectureCheckpoint(L.Callback):
    """Derives the architecture and writes it into ``run_dir/architectures``.

    ``last.json`` and ``step-<env_steps>.json`` at every evaluation, ``last.json`` at the end and when a run is
    interrupted, ``best.json`` when the supernet's score is the best so far. One rank writes.
    """

    def __init__(self) -> None:
        self.best_score = float("-inf")
        self._searching = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses other stages than the search."""
        search_module(self, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From here on there is something to keep: what fails sooner leaves an earlier run's files alone."""
        self._searching = True

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes what the search would give now, as the best if the supernet has never scored so high."""
        if trainer.state.fn != TrainerFn.FITTING or not leaves_files(trainer):
            return
        self.write_architecture(trainer, pl_module, f"step-{search_module(self, pl_module).env_steps:012d}")
        self.write_architecture(trainer, pl_module, "last")
        score = float(trainer.callback_metrics["val/score"])
        if score > self.best_score:
            self.best_score = score
            self.write_architecture(trainer, pl_module, "best")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes ``last.json`` at the end."""
        if leaves_files(trainer):
            self.write_architecture(trainer, pl_module, "last")
        self._searching = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Writes ``last.json`` on Ctrl-C, SIGTERM and errors."""
        if self._searching and leaves_files(trainer):
            self.write_architecture(trainer, pl_module, "last")

    def state_dict(self) -> dict[str, Any]:
        """The best score, for a resumed run."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best score."""
        self.best_score = state_dict["best_score"]

    @rank_zero_only
    def write_architecture(self, trainer: L.Trainer, pl_module: L.LightningModule, name: str) -> None:
        """Write ``run_dir/architectures/<name>.json``."""
        folder = Path(trainer.default_root_dir) / "architectures"
        search_module(self, pl_module).derive().save(folder / f"{name}.json")
