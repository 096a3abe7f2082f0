"""Callback that anneals the sampling temperature tau of a search (Sec. 4.4)."""

from typing import Any

import lightning as L

from a2d_lightning.callbacks.search_only import search_module
from a2d_lightning.runtime.errors import SettingError

LOWEST = 1e-3
"""Lower bound of tau: below it, draws are one-hot up to rounding and their weights overflow."""


class TemperatureAnnealing(L.Callback):
    """Sets tau = initial * decay ^ floor(num_decays * env_steps / total_env_steps).

    The paper multiplies 5 by 0.98 every 1e5 of 2e7 steps: 200 decays, down to 0.088. Because the number of decays is
    fixed, the schedule scales with the length of the search.

    tau changes between an update and the next rollout: the policy that acts in a rollout is the one that is updated.

    Args:
        initial: tau at the start.
        decay: Factor of one decay, in (0, 1].
        num_decays: Number of decays over the search's environment steps.

    Raises:
        SettingError: If an argument is out of range, or the final tau is below 1e-3.
    """

    def __init__(self, initial: float = 5.0, decay: float = 0.98, num_decays: int = 200) -> None:
        if initial <= 0 or not 0 < decay <= 1 or num_decays < 0:
            raise SettingError(
                f"TemperatureAnnealing: initial {initial} must be positive, decay {decay} in (0, 1] and num_decays "
                f"{num_decays} not negative."
            )
        final = initial * decay**num_decays
        if final < LOWEST:
            raise SettingError(
                f"TemperatureAnnealing: tau would end at {final:.3g}, but the weights of draws overflow below "
                f"{LOWEST:g}; raise decay {decay} or lower num_decays {num_decays}."
            )
        self.initial = initial
        self.decay = decay
        self.num_decays = num_decays

    def temperature(self, env_steps: int, total_env_steps: int) -> float:
        """Return tau after ``env_steps`` of ``total_env_steps``."""
        return self.initial * self.decay ** (min(env_steps, total_env_steps) * self.num_decays // total_env_steps)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that the stage is a search.

        Raises:
            SettingError: If it is not.
        """
        search_module(self, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set tau for the first rollout, after a checkpoint is restored."""
        self._set(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Set tau for the next rollout and log it."""
        self._set(pl_module)
        pl_module.log("search/tau", search_module(self, pl_module).supernet.tau)

    def _set(self, pl_module: L.LightningModule) -> None:
        module = search_module(self, pl_module)
        module.supernet.tau.fill_(self.temperature(module.env_steps, module.total_env_steps))
