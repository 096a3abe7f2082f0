"""Callback that warns of known failures of differentiable search."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from a2d_lightning.callbacks.search_only import is_logging_step, search_module
from a2d_lightning.modules import SearchModule
from a2d_lightning.runtime.errors import SettingError


class SearchGuards(L.Callback):
    """Warns once each if the search collapses to skips, alpha does not move, or alpha is decided too early.

    The checks run every ``log_every_n_steps`` of the trainer. They are off while alpha is not trained, and in controls
    with an alpha learning rate of 0.

    Args:
        skip_fraction: Warn if more than this fraction of the cells prefers skip with a probability above 0.5.
        still_logits: Warn if in the second half of the search, in every cell, the largest and the smallest alpha logit
            differ by less than this.
        frozen_probability: Warn if in the first half of the search, in every cell, the best operator has a probability
            above this; alpha was then decided by weights with little training.

    Raises:
        SettingError: If an argument is out of range.
    """

    def __init__(self, skip_fraction: float = 0.5, still_logits: float = 0.2, frozen_probability: float = 0.98) -> None:
        for name, value in (("skip_fraction", skip_fraction), ("frozen_probability", frozen_probability)):
            if not 0 < value < 1:
                raise SettingError(f"SearchGuards: {name} {value} must lie between 0 and 1.")
        if still_logits <= 0:
            raise SettingError(f"SearchGuards: still_logits {still_logits} must be positive.")
        self.skip_fraction = skip_fraction
        self.still_logits = still_logits
        self.frozen_probability = frozen_probability
        self.reported: list[str] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that the stage is a search.

        Raises:
            SettingError: If it is not.
        """
        search_module(self, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: L.LightningModule, *_: Any) -> None:
        """Run the checks at the trainer's logging interval."""
        if is_logging_step(trainer):
            for kind, message in self.findings(search_module(self, pl_module)):
                if kind not in self.reported:
                    self.reported.append(kind)
                    rank_zero_info(f"warning: {message}")

    @torch.no_grad()
    def findings(self, search: SearchModule) -> Iterator[tuple[str, str]]:
        """Yield each current problem as its kind (``skips``, ``still`` or ``frozen``) and a message with the remedy."""
        if search.alpha_learning_rate == 0 or not search.alpha_is_trained:
            return
        supernet = search.supernet
        alpha = supernet.log_alpha().exp()  # [cells, operators]
        cells = len(alpha)
        progress = search.search_progress
        at = f"at environment step {search.env_steps:,}"
        names = supernet.operator_names
        skips = int((alpha[:, names.index("skip")] > 0.5).sum()) if "skip" in names else 0
        if skips > self.skip_fraction * cells:
            yield (
                "skips",
                f"{skips} of {cells} cells have settled on skip {at}: the known collapse of differentiable search; "
                "lower model.lambda_cost, or train the weights first with model.alpha_warmup_env_steps.",
            )
        spread = float((supernet.alpha_logits.amax(1) - supernet.alpha_logits.amin(1)).max())
        if progress >= 0.5 and spread < self.still_logits:
            yield (
                "still",
                f"alpha has hardly moved {at}: its logits differ by {spread:.2g} at most, so the derived network would "
                "be noise; raise model.alpha_learning_rate or data.total_env_steps.",
            )
        best = float(alpha.amax(1).min())
        if progress < 0.5 and best > self.frozen_probability:
            yield (
                "frozen",
                f"alpha froze {at}, {progress:.0%} into the search: every cell gives its best operator more than "
                f"{self.frozen_probability:.0%}; lower model.alpha_learning_rate or model.lambda_cost, or set "
                "model.alpha_warmup_env_steps.",
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the kinds of problems already reported, for a resumed run."""
        return {"said": self.reported}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the kinds of problems already reported."""
        self.reported = list(state_dict["said"])
