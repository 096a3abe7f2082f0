"""Callback that logs the costs of a search's networks and the state of alpha."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from a2d_lightning.callbacks.search_only import is_logging_step, search_module
from a2d_lightning.nas.costs import expected_macs
from a2d_lightning.nas.supernet import Supernet


class FLOPsLogging(L.Callback):
    """Logs the costs of a search's networks and how decided alpha is, every ``log_every_n_steps`` of the trainer.

    Logged are expected and derived MACs per frame, the MACs of acting and updating under the current draw, the derived
    network's parameters and number of skips, and each cell's entropy and margin. The entropy of a cell's alpha is in
    nats (log 9 = 2.197 when undecided). The margin is the difference of the cell's two highest alpha logits. If the
    number of skips grows towards the number of cells, the search suffers the known collapse of differentiable search.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that the stage is a search.

        Raises:
            SettingError: If it is not.
        """
        search_module(self, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the MACs of acting and updating under the sampling scheme."""
        supernet = search_module(self, pl_module).supernet
        macs = supernet.draw_macs()
        rank_zero_info(
            f"{type(supernet.sampling).__name__}: MACs per frame for this draw: {macs.acting:,} to act, "
            f"{macs.forward:,} forward and {macs.backward:,} backward to update"
        )

    def on_train_batch_end(self, trainer: Any, pl_module: L.LightningModule, *_: Any) -> None:
        """Log the metrics at the trainer's logging interval."""
        if is_logging_step(trainer):
            pl_module.log_dict(search_metrics(search_module(self, pl_module).supernet))


@torch.no_grad()
def search_metrics(supernet: Supernet) -> dict[str, Tensor | float]:
    """Compute the logged metrics by name."""
    log_alpha = supernet.log_alpha()  # [cells, operators]
    entropy = -(log_alpha.exp() * log_alpha).sum(-1)  # [cells]
    best = log_alpha.topk(2, dim=-1).values
    margin = best[:, 0] - best[:, 1]  # [cells]
    architecture = supernet.derive()
    drawn = supernet.draw_macs()
    return {
        "search/expected_macs": expected_macs(supernet),
        "search/derived_macs": float(architecture.macs),
        "search/acting_macs": float(drawn.acting),
        "search/forward_macs": float(drawn.forward),
        "search/backward_macs": float(drawn.backward),
        "search/derived_parameters": float(architecture.parameters),
        "search/skips": float(sum(name == "skip" for name in architecture.operators)),
        "search/margin_mean": margin.mean(),
        **{f"search/entropy_cell{i:02d}": value for i, value in enumerate(entropy)},
        **{f"search/margin_cell{i:02d}": value for i, value in enumerate(margin)},
    }
