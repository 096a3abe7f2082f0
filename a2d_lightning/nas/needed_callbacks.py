"""Check of the callbacks that a search needs."""

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
    """Warn if no callback sets tau, or if none writes architectures; reject two that set tau.

    A missing callback is no error: tau may be constant on purpose, and ``derive`` reads architectures from checkpoints.

    Args:
        callbacks: the trainer's callbacks.
        tau: the supernet's tau, which stays if no callback sets it.

    Raises:
        SettingError: If several callbacks set tau.
    """
    callbacks = list(callbacks)
    schedules = [type(callback).__name__ for callback in callbacks if isinstance(callback, TemperatureSchedule)]
    if len(schedules) > 1:
        raise SettingError(f"trainer.callbacks: {' and '.join(schedules)} would both set tau; keep only one of them.")
    if not schedules:
        rank_zero_info(
            f"warning: tau stays at {tau:g}: trainer.callbacks has no schedule for it; add "
            "a2d_lightning.callbacks.TemperatureAnnealing"
        )
    if not any(isinstance(callback, ArchitectureWriter) for callback in callbacks):
        rank_zero_info(
            "warning: no architecture will be written: trainer.callbacks has no "
            "a2d_lightning.callbacks.ArchitectureCheckpoint; add it, or use `derive` on a checkpoint"
        )
