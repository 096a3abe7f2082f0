"""How one draw of the supernet's operators is used: which of them a cell computes, and what gradient they get.

A draw is y = softmax((log alpha + g) / tau) (Eq. 11) and the ranking of each cell's operators by log alpha + g. Acting
and updating on a rollout use the same one. Classes, chosen in YAML.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2d_lightning.cpu.weighted_sum import weighted_sum
from a2d_lightning.nas.search_space import OPERATORS
from a2d_lightning.runtime.errors import SettingError


@dataclass(frozen=True)
class Computed:
    """How many of a cell's operators are computed, from the first of the ranking on."""

    acting: int
    """While acting, and in evaluation."""
    forward: int
    """In the forward of an update."""
    backward: int
    """In its backward."""


class Sampling(ABC):
    """What a draw makes of a cell."""

    computed: Computed

    @property
    def skips_operators(self) -> bool:
        """Whether operators go without a gradient in an update."""
        return self.computed.backward < len(OPERATORS)

    @abstractmethod
    def weights(self, y: Tensor, ranking: Tensor) -> Tensor:
        """Weights of the operators' outputs, differentiable in y.

        Args:
            y: float ``[cells, operators]``, Eq. 11.
            ranking: int64 ``[cells, operators]``, operators by falling log alpha + g; the first is the sampled one.
        """

    @abstractmethod
    def mix(self, operators: nn.ModuleList, x: Tensor, weights: Tensor, ranking: Sequence[int]) -> Tensor:
        """A_l+1 of one cell.

        Args:
            operators: O_i^l.
            x: A_l, ``[B, in, h, w]``.
            weights: of :meth:`weights`, ``[operators]``, or ``[B, operators]`` of one draw per frame.
            ranking: the cell's.
        """


class SoftSum(Sampling):
    """The paper's (Eq. 10): A_l+1 = sum_i y_i O_i(A_l). Every operator is computed, and learns, always."""

    computed = Computed(len(OPERATORS), len(OPERATORS), len(OPERATORS))

    def weights(self, y: Tensor, ranking: Tensor) -> Tensor:
        """y itself."""
        return y

    def mix(self, operators: nn.ModuleList, x: Tensor, weights: Tensor, ranking: Sequence[int]) -> Tensor:
        """See :class:`Sampling`."""
        return weighted_sum(weights, [operator(x) for operator in operators])


class TopK(Sampling):
    """Only the sampled operator acts; the k highest-ranked give alpha its gradient (Auto-NBA and A3C-S).

    The forward's weights are one-hot, their gradient is that of y (straight-through, restricted to the k). Operators
    other than the sampled one have weight 0 and learn nothing from this draw: they are computed without a backward of
    their own, and only in updates.

    Args:
        k: 1 computes the sampled operator alone (:class:`SinglePath`), 9 all (:class:`HardStraightThrough`).
    """

    def __init__(self, k: int = 2) -> None:
        if not 1 <= k <= len(OPERATORS):
            raise SettingError(f"model.sampling.k: {k} paths of {len(OPERATORS)} operators; choose 1 to 9.")
        self.k = k
        self.computed = Computed(1, k, 1)

    def weights(self, y: Tensor, ranking: Tensor) -> Tensor:
        """One-hot, with y's gradient, of which :meth:`mix` uses the k highest."""
        sampled = F.one_hot(ranking[:, 0], y.shape[1]).to(y.dtype)
        return sampled + (y - y.detach())  # in this order exactly one-hot

    def mix(self, operators: nn.ModuleList, x: Tensor, weights: Tensor, ranking: Sequence[int]) -> Tensor:
        """See :class:`Sampling`."""
        sampled, *others = ranking[: self.k]
        out = operators[sampled](x)
        if not torch.is_grad_enabled():
            return out
        out = weights[sampled] * out
        for i in others:
            with torch.no_grad():
                unused = operators[i](x)
            out = torch.addcmul(out, weights[i], unused)
        return out


class SinglePath(TopK):
    """Only the sampled operator is computed, and only its y gets a gradient (GDAS)."""

    def __init__(self) -> None:
        super().__init__(k=1)


class HardStraightThrough(TopK):
    """The sampled operator forward, y's whole gradient backward: straight-through Gumbel-softmax."""

    def __init__(self) -> None:
        super().__init__(k=len(OPERATORS))
