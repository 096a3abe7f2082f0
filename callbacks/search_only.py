"""Helpers shared by the callbacks of a search."""

from typing import Any

import lightning as L

from a2d_lightning.modules import SearchModule
from a2d_lightning.runtime.errors import SettingError
from a2d_lightning.runtime.lightning_compat import batches_of_run


def search_module(callback: L.Callback, module: L.LightningModule) -> SearchModule:
    """Return ``module`` as a SearchModule.

    Raises:
        SettingError: If the callback is used in another stage.
    """
    if not isinstance(module, SearchModule):
        raise SettingError(
            f"trainer.callbacks: {type(callback).__name__} belongs to a search, not to {type(module).__name__}; "
            "remove it from the config."
        )
    return module


def is_logging_step(trainer: Any) -> bool:
    """Return whether the trainer logs after this rollout; False if ``log_every_n_steps`` is 0."""
    interval: int = trainer.log_every_n_steps
    return interval > 0 and batches_of_run(trainer) % interval == 0
