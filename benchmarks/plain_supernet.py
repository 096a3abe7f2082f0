"""The soft supernet module by module: what ``a2d_lightning.sampling.SoftSum`` is measured against. Frozen."""

import functools
from collections.abc import Sequence

from torch import Tensor, nn

from a2d_lightning.depthwise import DepthwiseConv5x5
from a2d_lightning.fused_batch_norm import FusedSequential
from a2d_lightning.pointwise import PointwiseConv
from a2d_lightning.sampling import SoftSum


class PlainSoftSum(SoftSum):
    """Eq. 10 as it is written."""

    def mix(self, operators: nn.ModuleList, x: Tensor, weights: Tensor, ranking: Sequence[int]) -> Tensor:
        """sum_i y_i O_i(A_l)."""
        return sum(weight * operator(x) for weight, operator in zip(weights, operators, strict=True))


def plain_layers(module: nn.Module) -> None:
    """Makes every layer in ``module`` compute as torch's own."""
    for layer in module.modules():
        if isinstance(layer, DepthwiseConv5x5 | PointwiseConv):
            object.__setattr__(layer, "forward", functools.partial(nn.Conv2d.forward, layer))
        elif isinstance(layer, FusedSequential):
            object.__setattr__(layer, "forward", functools.partial(nn.Sequential.forward, layer))
