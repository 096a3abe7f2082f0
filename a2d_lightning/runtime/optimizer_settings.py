"""Optimizer settings of a resumed run: from the run's configuration, with the state from the checkpoint.

Learning rates are excluded, since modules set them.
"""

import functools
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from torch.optim import Optimizer

from a2d_lightning.runtime.errors import SettingError


def without_parser(optimizer: OptimizerCallable) -> OptimizerCallable:
    """Return an optimizer factory without the parser that jsonargparse binds to it.

    The parser can be neither pickled nor copied, and neither could a module that holds it.

    Args:
        optimizer: A factory that jsonargparse made from ``class_path`` and ``init_args``, or any other callable.

    Returns:
        The optimizer class with its ``init_args`` bound; any other callable is returned unchanged.
    """
    if isinstance(optimizer, functools.partial) and optimizer.args and isinstance(optimizer.args[-1], type):
        return functools.partial(optimizer.args[-1], **optimizer.keywords)
    return optimizer


class OptimizerSettings:
    """The configured settings of optimizers, which ``load_state_dict`` overwrites with the checkpoint's settings."""

    def __init__(self) -> None:
        self._saved: list[set[str]] = []
        self._asked: list[list[dict[str, Any]]] = []

    def read(self, checkpoint: dict[str, Any]) -> None:
        """Record the names of the settings of a checkpoint's optimizers."""
        self._saved = [
            set(state["param_groups"][0]) - {"params", "lr"} for state in checkpoint.get("optimizer_states", [])
        ]

    def keep(self, optimizers: Sequence[Optimizer]) -> None:
        """Record the settings of newly created optimizers.

        Raises:
            SettingError: If an optimizer of the checkpoint has settings that the new one lacks.
        """
        self._asked = [
            [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]
            for optimizer in optimizers
        ]
        for saved, asked, optimizer in zip(self._saved, self._asked, optimizers, strict=False):
            if unknown := sorted(saved - asked[0].keys()):
                raise SettingError(
                    f"model.optimizer: {type(optimizer).__name__} has no {', '.join(unknown)}, which the checkpoint's "
                    "optimizer has; resume with the optimizer class that the run started with."
                )

    def restore(self, optimizers: Sequence[Optimizer]) -> None:
        """Write the recorded settings back into the optimizers."""
        for asked, optimizer in zip(self._asked, optimizers, strict=True):
            for settings, group in zip(asked, optimizer.param_groups, strict=True):
                group.update(settings)
