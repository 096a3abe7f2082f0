"""On resume, optimizers have the settings that the run asks for, and their state from the checkpoint.

All but the learning rates, which modules set.
"""

import functools
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from torch.optim import Optimizer

from a2d_lightning.runtime.errors import SettingError


def without_parser(optimizer: OptimizerCallable) -> OptimizerCallable:
    """Return what a command line made of ``class_path`` and ``init_args``, without the parser that jsonargparse binds.

    The parser can be neither pickled nor copied, and a module that holds it could not be, either.
    """
    if isinstance(optimizer, functools.partial) and optimizer.args and isinstance(optimizer.args[-1], type):
        return functools.partial(optimizer.args[-1], **optimizer.keywords)
    return optimizer


class OptimizerSettings:
    """Keep what optimizers were made with, while ``load_state_dict`` replaces it by the checkpoint's."""

    def __init__(self) -> None:
        self._saved: list[set[str]] = []
        self._asked: list[list[dict[str, Any]]] = []

    def read(self, checkpoint: dict[str, Any]) -> None:
        """Note which settings a checkpoint's optimizers had."""
        self._saved = [
            set(state["param_groups"][0]) - {"params", "lr"} for state in checkpoint.get("optimizer_states", [])
        ]

    def keep(self, optimizers: Sequence[Optimizer]) -> None:
        """Keep the settings of optimizers that have just been made.

        Raises:
            SettingError: the checkpoint's optimizers are of another kind.
        """
        self._asked = [
            [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]
            for optimizer in optimizers
        ]
        for saved, asked, optimizer in zip(self._saved, self._asked, optimizers, strict=False):
            if unknown := sorted(saved - asked[0].keys()):
                raise SettingError(
                    f"model.optimizer: {type(optimizer).__name__} has no {', '.join(unknown)}, which the checkpoint's "
                    "optimizer has; resume with the class that the run began with."
                )

    def restore(self, optimizers: Sequence[Optimizer]) -> None:
        """Give the optimizers the settings that were kept."""
        for asked, optimizer in zip(self._asked, optimizers, strict=True):
            for settings, group in zip(asked, optimizer.param_groups, strict=True):
                group.update(settings)
