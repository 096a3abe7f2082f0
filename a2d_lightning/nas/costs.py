"""L_cost of alpha from a table of costs, one an operator: estimators, differentiable in alpha, chosen in YAML."""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from a2d_lightning.nas.supernet import Supernet

CostEstimator = Literal["expected", "drawn", "argmax"]


def expected(supernet: Supernet) -> Tensor:
    """alpha: the mean over networks that alpha samples, sum_l sum_i alpha_i^l C_i^l."""
    return supernet.log_alpha().exp()


def drawn(supernet: Supernet) -> Tensor:
    """The weights of the current draw: what this rollout's network costs."""
    return supernet.weights()


def argmax(supernet: Supernet) -> Tensor:
    """One-hot: what the network that would be derived now costs, with ``expected``'s gradient (straight-through)."""
    alpha = supernet.log_alpha().exp()
    best = F.one_hot(alpha.argmax(-1), alpha.shape[1]).to(alpha.dtype)
    return best + (alpha - alpha.detach())


COST_ESTIMATORS: dict[CostEstimator, Callable[[Supernet], Tensor]] = {
    "expected": expected,
    "drawn": drawn,
    "argmax": argmax,
}
"""Supernet to weights ``[cells, operators]`` of the operators' costs."""


def cost_of(supernet: Supernet, estimator: CostEstimator, table: Tensor) -> Tensor:
    """L_cost, a scalar: the operators' costs ``table`` ``[cells, operators]``, weighted by an estimator."""
    return (COST_ESTIMATORS[estimator](supernet) * table).sum()


def expected_macs(supernet: Supernet) -> Tensor:
    """Mean MACs over the networks that alpha samples, what is not searched included; a scalar."""
    return cost_of(supernet, "expected", supernet.macs_table) + supernet.fixed_macs
