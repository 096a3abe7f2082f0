"""Check for Trainer settings and callbacks that have no meaning here, run before anything starts."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.callbacks import Checkpoint, ProgressBar

from a2d_lightning.runtime.errors import SettingError

TRAINS_NOTHING = "trains nothing; set the length of a run with data.total_env_steps."

REFUSED_VALUES = {
    "max_epochs": (0, TRAINS_NOTHING),
    "max_steps": (0, TRAINS_NOTHING),
    "limit_train_batches": (0, TRAINS_NOTHING),
    "barebones": (True, "disables metrics and checkpoints; remove it."),
}
"""Rejected value and reason, by setting."""

SWITCHES = {"enable_checkpointing": Checkpoint, "enable_progress_bar": ProgressBar}
"""Trainer switches, and the type of callback that each enables."""

REFUSED_CALLBACKS = {
    "BaseFinetuning": "agents are trained as a whole, with one learning rate.",
    "BatchSizeFinder": "a batch is a rollout; set data.num_envs and data.rollout_length.",
    "GradientAccumulationScheduler": "an update uses a whole rollout; raise data.num_envs.",
    "LearningRateFinder": "a learning rate found in a short run is unreliable for a policy; set model.optimizer.lr.",
    "ModelPruning": "zero weights are still multiplied, so pruning saves no time; search a smaller network.",
    "SpikeDetection": "use model.on_nan and model.gradient_clip_norm instead.",
    "ThroughputMonitor": "a2d_lightning.callbacks.EnvStepsProgress counts environment steps per second.",
}
"""Rejected Lightning callbacks by class name, with the reason."""


def check_trainer(asked: Mapping[str, Any], trains: bool) -> None:
    """Check the user's settings of the Trainer.

    Args:
        asked: Section ``trainer`` of the configuration, with callbacks as objects.
        trains: Whether the command is ``fit``.

    Raises:
        SettingError: If a value or a callback has no meaning here.
    """
    for name, (value, reason) in REFUSED_VALUES.items():
        given = asked.get(name)
        if trains and given is not None and given == value and isinstance(given, bool) == isinstance(value, bool):
            raise SettingError(f"trainer.{name}: {value} {reason}")
    if (asked.get("accumulate_grad_batches") or 1) > 1:
        raise SettingError(
            f"trainer.accumulate_grad_batches: {REFUSED_CALLBACKS['GradientAccumulationScheduler']}",
        )
    callbacks = asked.get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        for name, kind_switched in SWITCHES.items():
            if asked.get(name) is False and isinstance(callback, kind_switched):
                raise SettingError(
                    f"trainer.{name}: False, but trainer.callbacks has {type(callback).__name__}; remove the callback "
                    "instead."
                )
        for kind in type(callback).__mro__:
            if kind.__name__ in REFUSED_CALLBACKS and kind.__module__.startswith("lightning."):
                raise SettingError(f"trainer.callbacks: {kind.__name__}: {REFUSED_CALLBACKS[kind.__name__]}")
