"""What a search needs of the callbacks in its config."""

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch.utilities import rank_zero_info

from a2d_lightning.runtime.errors import SettingError


@runtime_checkable
class TemperatureSchedule(Protocol):
    """A callback that sets tau."""

    def temperature(self, env_steps: int, total_env_steps: int) -> float:
        """Return tau after ``env_steps`` of a budget of ``total_env_steps``."""


@runtime_checkable
class ArchitectureWriter(Protocol):
    """A callback that writes the derived architecture."""

    def write_architecture(self, trainer: Any, pl_module: Any, name: str) -> None:
        """Derive the architecture and write it into a file of this name."""


def check_callbacks(callbacks: Iterable[Any], tau: float) -> None:
    """Warn if no callback sets tau, or if none writes architectures; refuse two that set tau.

    A missing one is no error: tau may be constant on purpose, and ``derive`` reads architectures from checkpoints.

    Args:
        callbacks: of the trainer.
        tau: the supernet's, which holds where no callback sets another.

    Raises:
        SettingError: several callbacks would set tau in turn.
    """
    callbacks = list(callbacks)
    schedules = [type(callback).__name__ for callback in callbacks if isinstance(callback, TemperatureSchedule)]
    if len(schedules) > 1:
        raise SettingError(f"trainer.callbacks: {' and '.join(schedules)} would both set tau; leave one of them.")
    if not schedules:
        rank_zero_info(
            f"warning: tau stays at {tau:g}: trainer.callbacks has no schedule for it; add "
            "callbacks.TemperatureAnnealing"
        )
    if not any(isinstance(callback, ArchitectureWriter) for callback in callbacks):
        rank_zero_info(
            "warning: no architecture will be written: trainer.callbacks has no callbacks.ArchitectureCheckpoint; add "
            "it, or use `derive` on a checkpoint"
        )
