"""Estimators of L_cost(alpha) from a table with the cost of each operator, differentiable in alpha."""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from a2d_lightning.nas.supernet import Supernet

CostEstimator = Literal["expected", "drawn", "argmax"]


def expected(supernet: Supernet) -> Tensor:
    """Return alpha, float ``[cells, operators]``, for the mean cost of the networks that alpha samples.

    The cost is sum_l sum_i alpha_i^l C_i^l.
    """
    return supernet.log_alpha().exp()


def drawn(supernet: Supernet) -> Tensor:
    """Return the weights of the current draw, float ``[cells, operators]``, for the cost of this rollout's network."""
    return supernet.weights()


def argmax(supernet: Supernet) -> Tensor:
    """Return one-hot weights of the highest alphas, float ``[cells, operators]``, for the cost of that network.

    The gradient is that of :func:`expected` (straight-through).
    """
    alpha = supernet.log_alpha().exp()
    best = F.one_hot(alpha.argmax(-1), alpha.shape[1]).to(alpha.dtype)
    return best + (alpha - alpha.detach())


COST_ESTIMATORS: dict[CostEstimator, Callable[[Supernet], Tensor]] = {
    "expected": expected,
    "drawn": drawn,
    "argmax": argmax,
}
"""Functions of a supernet to the weights ``[cells, operators]`` of the operators' costs."""


def cost_of(supernet: Supernet, estimator: CostEstimator, table: Tensor) -> Tensor:
    """Compute L_cost.

    Args:
        supernet: source of alpha and of the current draw.
        estimator: name in :data:`COST_ESTIMATORS`.
        table: C_i^l, cost of each operator, float ``[cells, operators]``.

    Returns:
        Scalar, differentiable in alpha.
    """
    return (COST_ESTIMATORS[estimator](supernet) * table).sum()


def expected_macs(supernet: Supernet) -> Tensor:
    """Compute the mean MACs of the networks that alpha samples, including the fixed layers; a scalar."""
    return cost_of(supernet, "expected", supernet.macs_table) + supernet.fixed_macs
