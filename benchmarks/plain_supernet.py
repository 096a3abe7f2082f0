"""The soft supernet module by module: what ``a2d_lightning.sampling.SoftSum`` is measured against. Frozen."""

from collections.abc import Sequence

from torch import Tensor, nn

from a2d_lightning.sampling import SoftSum


class PlainSoftSum(SoftSum):
    """Eq. 10 as it is written."""

    def mix(self, operators: nn.ModuleList, x: Tensor, weights: Tensor, ranking: Sequence[int]) -> Tensor:
        """sum_i y_i O_i(A_l)."""
        return sum(weight * operator(x) for weight, operator in zip(weights, operators, strict=True))
