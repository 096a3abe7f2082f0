"""The soft supernet module by module: what ``a2d_lightning.nas.sampling.SoftSum`` is measured against. Frozen."""

from collections.abc import Sequence

from torch import Tensor, nn

from a2d_lightning.cpu.depthwise import DepthwiseConv5x5
from a2d_lightning.cpu.fused_batch_norm import FusedSequential
from a2d_lightning.cpu.pointwise import PointwiseConv
from a2d_lightning.nas.sampling import SoftSum


class PlainSoftSum(SoftSum):
    """Eq. 10 as it is written."""

    def mix(self, operators: nn.ModuleList, x: Tensor, weights: Tensor, ranking: Sequence[int]) -> Tensor:
        """sum_i y_i O_i(A_l)."""
        return sum(weight * operator(x) for weight, operator in zip(weights, operators, strict=True))


def plain_layers(module: nn.Module) -> None:
    """Make every layer in ``module`` compute as torch's own (the reverse of ``accelerate``)."""
    for layer in module.modules():
        if isinstance(layer, DepthwiseConv5x5 | PointwiseConv):
            layer.__class__ = nn.Conv2d
        elif isinstance(layer, FusedSequential):
            layer.__class__ = nn.Sequential
