"""tau over a search's budget (Sec. 4.4)."""

from typing import Any

import lightning as L

from a2d_lightning.runtime.errors import SettingError
from callbacks.search_only import search_module

LOWEST = 1e-3
"""Sharper draws are single paths to the last digit."""


class TemperatureAnnealing(L.Callback):
    """tau = initial * decay ^ floor(num_decays * env_steps / total_env_steps).

    The paper multiplies 5 by 0.98 every 1e5 of 2e7 steps: 200 decays, down to 0.088. As a number of decays, a shorter
    search shrinks the schedule in proportion.

    tau moves after an update and before the next rollout is collected, so that the policy that acts on a rollout is the
    one that is updated on it.

    Args:
        initial: tau at the start.
        decay: factor of one decay.
        num_decays: decays in the budget of environment steps.
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
                f"TemperatureAnnealing: tau would end at {final:.3g}, and weights of draws overflow below {LOWEST:g}; "
                f"raise decay {decay} or lower num_decays {num_decays}."
            )
        self.initial = initial
        self.decay = decay
        self.num_decays = num_decays

    def temperature(self, env_steps: int, total_env_steps: int) -> float:
        """tau after ``env_steps`` of a budget of ``total_env_steps``."""
        return self.initial * self.decay ** (min(env_steps, total_env_steps) * self.num_decays // total_env_steps)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses other stages than the search."""
        search_module(self, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Sets tau for the first rollout, after a checkpoint was restored."""
        self._set(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Sets tau for the next rollout."""
        self._set(pl_module)
        pl_module.log("search/tau", search_module(self, pl_module).supernet.tau)

    def _set(self, pl_module: L.LightningModule) -> None:
        module = search_module(self, pl_module)
        module.supernet.tau.fill_(self.temperature(module.env_steps, module.total_env_steps))
