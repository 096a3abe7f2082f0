"""A MACs budget in place of a fixed lambda: what is far from it costs, and lambda rises until it is met."""

import math
from typing import Any

import torch
from torch import Tensor

from a2d_lightning.errors import SettingError
from a2d_lightning.supernet import Supernet

AIM = 0.975
"""The middle of what meets a budget: 95 % to 100 % of it."""
TOLERANCE = 0.02
"""Around the aim; a little less than half of that range, so that what meets the budget does not lie at its edge."""

RISE = 80.0
DECAY = 3.0
"""Natural logarithms by which the pressure would move in a whole run, outside and inside of the budget."""
WEAKEST, STRONGEST = 0.02, 30.0
PATIENCE = 4
"""The pressure stays below ``STRONGEST * progress ** PATIENCE``, so that the reward is heard before the budget."""
MEMORY = 0.99


class MacsBudget:
    """Adapts lambda so that the derived network ends within 95 % to 100 % of ``target_macs``.

    A price a MAC alone cannot do that: networks are discrete, so that some lambda gives one that is too large, the next
    one too small, and alpha swings between the two. Here an operator costs what it would leave the derived network away
    from the budget if its cell alone took it (:meth:`distances`), so that alpha is led to changes that meet it.

    lambda = pressure * |reward's gradient on alpha| / |cost's gradient on alpha|, a running mean over the reward's: a
    scale that no game, plan or decidedness of alpha changes. The pressure rises while the budget is not met and falls
    slowly while it is; its ceiling is low at first and rises over the run, so that the reward decides what the budget
    leaves open. Found by simulating alpha under random rewards (docs/notes.md).

    Args:
        target_macs: the budget.
    """

    def __init__(self, target_macs: float) -> None:
        self.target_macs = target_macs
        self.pressure = WEAKEST
        self.progress = 0.0
        self.reward_norm: Tensor | None = None

    @torch.no_grad()
    def distances(self, supernet: Supernet) -> Tensor:
        """Relative distance from the budget of the derived network with one cell changed, ``[cells, operators]``."""
        table = supernet.macs_table
        chosen = table.gather(1, supernet.alpha_logits.argmax(-1, keepdim=True))  # [cells, 1]
        others = chosen.sum() + supernet.fixed_macs - chosen
        return (((others + table) / self.target_macs - AIM).abs() - TOLERANCE).clamp(min=0.0)

    @torch.no_grad()
    def lambda_cost(self, reward_gradient: Tensor, cost_gradient: Tensor) -> Tensor:
        """lambda of this update, a scalar, from the two gradients on alpha."""
        norm = reward_gradient.norm()
        self.reward_norm = norm if self.reward_norm is None else torch.lerp(norm, self.reward_norm.to(norm), MEMORY)
        return self.pressure * self.reward_norm / (cost_gradient.norm() + 1e-10)

    def observe(self, derived_macs: int, progress: float) -> None:
        """Moves the pressure.

        Args:
            derived_macs: of the network that alpha would give now.
            progress: part of the search's environment steps that is spent, from the end of its warm-up.
        """
        met = abs(derived_macs / self.target_macs - AIM) <= TOLERANCE
        rate = -DECAY if met else RISE
        # a resumed run whose budget of steps grew stands further back than it was
        self.pressure *= math.exp(rate * max(progress - self.progress, 0.0))
        self.pressure = max(min(self.pressure, STRONGEST * progress**PATIENCE), WEAKEST)
        self.progress = progress

    def state_dict(self) -> dict[str, Any]:
        """For a resumed search."""
        return {"pressure": self.pressure, "progress": self.progress, "reward_norm": self.reward_norm}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores it."""
        self.pressure, self.progress = state["pressure"], state["progress"]
        self.reward_norm = state["reward_norm"]


def check_budget(target_macs: float, cheapest: int, dearest: int) -> None:
    """Whether networks of a search space can meet a budget.

    Args:
        target_macs: the budget.
        cheapest: MACs of the cheapest network, every cell a skip.
        dearest: of the most expensive one.

    Raises:
        SettingError: all of them cost more, or less.
    """
    if target_macs < cheapest:
        raise SettingError(
            f"model.target_macs: {target_macs:,.0f} is less than the cheapest network of model.plan costs "
            f"({cheapest:,}); ask for more, or take a smaller plan."
        )
    if AIM * target_macs > dearest:
        raise SettingError(
            f"model.target_macs: {target_macs:,.0f} is more than the most expensive network of model.plan costs "
            f"({dearest:,}); ask for less, or take a larger plan."
        )
