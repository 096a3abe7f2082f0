"""Signal and noise in alpha's gradient."""

from typing import Any

import torch
from torch import Tensor, nn

DECAY = 0.99
"""Factor by which a gradient's weight falls with each later gradient; averages over about the last 100."""


class GradientNoise(nn.Module):
    """Signal-to-noise ratio of alpha's gradients in each cell.

    With the weights ``w_k = DECAY^(t - k)`` of the gradients ``g_k``, ``k = 1 ... t``, divided by their sum::

        mean     = sum_k w_k g_k                                [cells, operators]
        variance = sum_k w_k (g_k - mean)^2                     [cells, operators]
        snr      = |mean| / sqrt(sum over operators of variance)    [cells]

    where ``|mean|`` is the Euclidean norm over the operators. Independent gradients with mean 0 give about
    ``sqrt((1 - DECAY) / (1 + DECAY))`` = 0.07. The ratio is 0 before two different gradients are added.

    The state is kept in buffers, which checkpoints hold. A checkpoint without them starts a new average.

    Args:
        cells: number of cells.
        operators: number of operators of a cell.
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor

    def __init__(self, cells: int, operators: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(cells, operators))
        self.register_buffer("variance", torch.zeros(cells, operators))
        self.register_buffer("weight", torch.zeros(()))  # (1 - DECAY) sum_k DECAY^(t - k), to normalize the weights

    @torch.no_grad()
    def observe(self, gradient: Tensor) -> None:
        """Add one gradient, float ``[cells, operators]``."""
        self.weight.mul_(DECAY).add_(1 - DECAY)
        share = (1 - DECAY) / self.weight  # of this gradient; 1 at the first
        difference = gradient - self.mean
        self.mean.add_(share * difference)
        self.variance.add_(share * difference.square()).mul_(1 - share)

    def snr(self) -> Tensor:
        """Compute the ratio of each cell, float ``[cells]``."""
        signal, noise = self.mean.norm(dim=-1), self.variance.sum(-1).sqrt()
        return torch.where(noise > 0, signal / noise, 0.0)

    def metrics(self) -> dict[str, Tensor | float]:
        """Return the ratio of each cell by the name of its metric."""
        return {f"search/alpha_snr_cell{i:02d}": value for i, value in enumerate(self.snr())}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, buffer in self.named_buffers():
            state_dict.setdefault(prefix + name, buffer)
        super()._load_from_state_dict(state_dict, prefix, *args)
