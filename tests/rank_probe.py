"""A callback for the tests of several processes: writes what each rank saw and has."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor


def digest(tensors: Iterable[Tensor]) -> str:
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().contiguous().cpu().numpy().tobytes())
    return total.hexdigest()


class RankProbe(L.Callback):
    """After every update: a hash of the parameters, of alpha, of the draw, of running statistics and of the frames."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        buffers = dict(pl_module.named_buffers())
        self.rows.append(
            {
                "weights": digest(pl_module.parameters()),
                "alpha": digest(p for n, p in pl_module.named_parameters() if n.endswith("alpha_logits")),
                "draw": digest(b for n, b in buffers.items() if n.endswith(("gumbel", "ranking"))),
                "statistics": digest(b for n, b in buffers.items() if "running_" in n),
                "frames": digest([batch["pixels"]]),
                "env_steps": pl_module.env_steps,
            }
        )

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.scored_buffers = digest(pl_module.agent.buffers())

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        scores = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        path = Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.json"
        path.write_text(json.dumps({"rows": self.rows, "scores": scores, "scored_buffers": self.scored_buffers}))


class OddRank(L.Callback):
    """Moves a weight of rank 1 alone, once."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == 1 and batch_idx == 2:
            weight = next(iter(pl_module.parameters())).data
            weight[(0,) * weight.ndim] += 1e-6


class PoisonRank(L.Callback):
    """Rewards of NaN in the third rollout of rank 1."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == 1 and batch_idx == 2:
            batch["next", "reward"].fill_(float("nan"))
