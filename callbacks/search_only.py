"""Helpers shared by the callbacks of a search."""

from typing import Any

import lightning as L

from a2d_lightning.modules import SearchModule
from a2d_lightning.runtime.errors import SettingError


def search_module(callback: L.Callback, module: L.LightningModule) -> SearchModule:
    """Return ``module`` as a SearchModule.

    Raises:
        SettingError: If the callback is used in another stage.
    """
    if not isinstance(module, SearchModule):
        raise SettingError(
            f"trainer.callbacks: {type(callback).__name__} belongs to a search, not to {type(module).__name__}; "
            "take it out of the config."
        )
    return module


def is_logging_step(trainer: Any) -> bool:
    """Return whether the trainer logs after this rollout; False if ``log_every_n_steps`` is 0."""
    interval: int = trainer.log_every_n_steps
    return interval > 0 and (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % interval == 0
