"""Derivation of one operator per cell from alpha: the paper's argmax, or the best network under a MACs limit.

The solver works on arrays of log alpha and any integer cost; the classes apply it to MACs.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from jsonargparse.typing import PositiveFloat
from numpy.typing import NDArray
from torch import Tensor

from a2d_lightning.runtime.errors import SettingError


@dataclass(frozen=True)
class ParetoFront:
    """The networks that no other network beats in both cost and sum of log alpha, by rising cost.

    Both columns rise strictly: a point that costs more has a higher sum.
    """

    cost: NDArray[np.int64]
    """Summed over the cells, ``[points]``."""
    log_alpha: NDArray[np.float64]
    """Summed over the cells, ``[points]``."""
    operators: NDArray[np.int64]
    """Index of each cell's operator, ``[points, cells]``."""


def pareto_front(log_alpha: NDArray[np.float64], cost: NDArray[np.int64], budget: int | None = None) -> ParetoFront:
    """Compute the whole front in one pass of dynamic programming over the cells.

    After each cell, only the (cost, sum) states that no other state beats are kept. A beaten state cannot become part
    of a better network, because every state can be completed in the same ways. The result is therefore exact. Of
    networks with an equal sum, the cheapest is kept; of networks that are equal in both, always the same one.

    Time on one shared CPU core with MACs as the cost, for the plan (2, 2, 2), (8, 16, 32) at 42x42 and the paper's plan
    at 84x84: if log alpha is random, below 1 ms each, with up to 28 and 103 points; if it follows the cost with 1 % of
    noise, 2 and 70 ms, with 1,088 and 4,720 points. Only a log alpha exactly proportional to the cost (6.3 million
    points for the paper's plan) takes a minute, or 2 s with a limit of an eighth of the highest cost.

    Args:
        log_alpha: float64 ``[cells, operators]``.
        cost: int64 ``[cells, operators]``, not negative.
        budget: leave out networks that cost more; the front is empty if all of them do.
    """
    # the cheapest completion of a state, by the number of cells that it covers
    completion = np.append(np.cumsum(cost.min(1)[::-1])[::-1], 0)
    costs, sums = np.zeros(1, np.int64), np.zeros(1)
    steps = []  # of each cell: the state before it and the operator, both int64 [states]
    for cell, (cell_log_alpha, cell_cost) in enumerate(zip(log_alpha, cost, strict=True)):
        all_costs = (costs[:, None] + cell_cost).ravel()  # [states * operators]
        all_sums = (sums[:, None] + cell_log_alpha).ravel()
        kept = np.lexsort((-all_sums, all_costs))  # stable: by cost, then by falling sum, then by index
        if budget is not None:
            kept = kept[all_costs[kept] + completion[cell + 1] <= budget]
        ordered = all_sums[kept]
        better = np.ones(len(kept), bool)
        better[1:] = ordered[1:] > np.maximum.accumulate(ordered)[:-1]
        kept = kept[better]
        costs, sums = all_costs[kept], all_sums[kept]
        steps.append(np.divmod(kept, len(cell_cost)))
    states = np.arange(len(costs))
    operators = np.empty((len(costs), len(steps)), np.int64)
    for cell in range(len(steps) - 1, -1, -1):
        before, chosen = steps[cell]
        operators[:, cell] = chosen[states]
        states = before[states]
    return ParetoFront(costs, sums, operators)


def best_under_cost(log_alpha: NDArray[np.float64], cost: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """Choose the operators int64 ``[cells]`` with the highest sum of log alpha whose summed cost is within ``budget``.

    The arguments are those of :func:`pareto_front`, which also defines how ties are resolved.

    Raises:
        ValueError: If every choice costs more than ``budget``.
    """
    front = pareto_front(log_alpha, cost, budget)
    if not len(front.cost):
        raise ValueError(f"the cheapest operators cost {cost.min(1).sum():,}, more than the budget {budget:,}")
    return front.operators[-1]


class Derivation(ABC):
    """Rule that chooses the operators of the derived network."""

    @abstractmethod
    def choose(self, log_alpha: Tensor, macs: Tensor, fixed_macs: int) -> Tensor:
        """Choose an operator for each cell.

        Args:
            log_alpha: float ``[cells, operators]``.
            macs: int64 ``[cells, operators]``, for one observation.
            fixed_macs: MACs of the layers that are not searched.

        Returns:
            int64 ``[cells]``, on the CPU.

        Raises:
            SettingError: If no network meets the limit.
        """


class Argmax(Derivation):
    """The operator with the highest alpha in each cell, whatever it costs (the paper's rule)."""

    def choose(self, log_alpha: Tensor, macs: Tensor, fixed_macs: int) -> Tensor:
        """Choose the operator with the highest alpha in each cell, the first if several are equal."""
        return log_alpha.argmax(-1).cpu()


class MaxAlphaUnderMacs(Derivation):
    """The most probable network within a MACs limit: the highest sum of log alpha over the cells, found exactly.

    Args:
        target_macs: maximum MACs of the whole backbone for one observation, without heads.
    """

    def __init__(self, target_macs: PositiveFloat) -> None:
        self.target_macs = float(target_macs)  # a plain float, as in ActorCriticModule

    def choose(self, log_alpha: Tensor, macs: Tensor, fixed_macs: int) -> Tensor:
        """Choose the operators with the highest sum of log alpha, the cheapest if several are equal."""
        cost = macs.cpu().numpy()
        cheapest = int(cost.min(1).sum()) + fixed_macs
        if self.target_macs < cheapest:
            raise SettingError(
                f"model.derivation.target_macs: {self.target_macs:,.0f} is less than the cheapest network of "
                f"model.plan costs ({cheapest:,}); give at least {cheapest:,}, or choose a smaller model.plan."
            )
        budget = math.floor(self.target_macs) - fixed_macs
        return torch.from_numpy(best_under_cost(log_alpha.double().cpu().numpy(), cost, budget))
