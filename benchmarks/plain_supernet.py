"""Unoptimized soft supernet: the fixed reference for the speed of ``a2d_lightning.nas.sampling.SoftSum``."""

from collections.abc import Sequence

from torch import Tensor, nn

from a2d_lightning.cpu.depthwise import DepthwiseConv5x5
from a2d_lightning.cpu.fused_batch_norm import FusedSequential
from a2d_lightning.nas.sampling import SoftSum


class PlainSoftSum(SoftSum):
    """Direct implementation of Eq. 10."""

    def mix(self, operators: nn.ModuleList, x: Tensor, weights: Tensor, ranking: Sequence[int]) -> Tensor:
        """Return sum_i y_i O_i(A_l) over the operators O_i of a cell.

        Args:
            operators: Operators of the cell.
            x: Input A_l of the cell.
            weights: Weights y ``[operators]``.
            ranking: Not used.
        """
        return sum(weight * operator(x) for weight, operator in zip(weights, operators, strict=True))


def plain_layers(module: nn.Module) -> None:
    """Replace the accelerated layers in ``module`` by torch's, in place (the inverse of ``accelerate``)."""
    for layer in module.modules():
        if isinstance(layer, DepthwiseConv5x5):
            layer.__class__ = nn.Conv2d
        elif isinstance(layer, FusedSequential):
            layer.__class__ = nn.Sequential
