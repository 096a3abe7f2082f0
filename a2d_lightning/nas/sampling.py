"""Use of one draw of the supernet's operators: which operators a cell computes, and which gradients they get.

A draw is y = softmax((log alpha + g) / tau) (Eq. 11) and the ranking of each cell's operators by log alpha + g. Acting
and updating on a rollout use the same draw.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2d_lightning.cpu.weighted_sum import weighted_sum
from a2d_lightning.runtime.errors import SettingError


@dataclass(frozen=True)
class Computed:
    """Number of operators that a cell computes, from the top of the ranking; None for all."""

    acting: int | None
    """While acting and in evaluation."""
    forward: int | None
    """In the forward of an update."""
    backward: int | None
    """In the backward of an update."""


class Sampling(ABC):
    """Use of a draw in a cell."""

    computed: Computed

    @property
    def skips_operators(self) -> bool:
        """Return whether some operators get no gradient in an update."""
        return self.computed.backward is not None

    def check(self, num_operators: int) -> None:  # noqa: B027 (most fit any number)
        """Check that the sampling fits cells of so many operators.

        Raises:
            SettingError: If it does not.
        """

    @abstractmethod
    def weights(self, y: Tensor, ranking: Tensor) -> Tensor:
        """Compute the weights of the operators' outputs, differentiable in y.

        Args:
            y: Eq. 11, float ``[cells, operators]``, or ``[B, cells, operators]`` with one draw per frame.
            ranking: int64 ``[cells, operators]``, operators by falling log alpha + g; the first is the sampled one.

        Returns:
            Float, of the shape of ``y``.
        """

    @abstractmethod
    def mix(self, operators: nn.ModuleList, x: Tensor, weights: Tensor, ranking: Sequence[int]) -> Tensor:
        """Compute A_l+1, the output of one cell.

        Args:
            operators: O_i^l.
            x: A_l, ``[B, in, h, w]``.
            weights: the cell's part of :meth:`weights`, ``[operators]``, or ``[B, operators]`` with one draw per frame.
            ranking: the cell's operators, the sampled one first.

        Returns:
            ``[B, out, h', w']``.
        """


class SoftSum(Sampling):
    """The paper's soft sum (Eq. 10): A_l+1 = sum_i y_i O_i(A_l). All operators are computed and trained."""

    computed = Computed(acting=None, forward=None, backward=None)

    def weights(self, y: Tensor, ranking: Tensor) -> Tensor:
        """Return y."""
        return y

    def mix(self, operators: nn.ModuleList, x: Tensor, weights: Tensor, ranking: Sequence[int]) -> Tensor:
        """Compute Eq. 10; see :class:`Sampling`."""
        return weighted_sum(weights, [operator(x) for operator in operators])


class TopK(Sampling):
    """Only the sampled operator acts; the k highest-ranked give alpha its gradient (Auto-NBA and A3C-S).

    The weights are one-hot in the forward and have the gradient of y (straight-through), restricted to the k. Operators
    other than the sampled one have weight 0 and are not trained under this draw. They are computed in updates only, and
    without a backward of their own.

    Args:
        k: number of operators computed in an update, 1 (:class:`SinglePath`) to all (:class:`HardStraightThrough`).
    """

    def __init__(self, k: int = 2) -> None:
        self.k: int | None = k
        self.computed = Computed(acting=1, forward=k, backward=1)

    def check(self, num_operators: int) -> None:
        """See :class:`Sampling`."""
        if self.k is not None and not 1 <= self.k <= num_operators:
            raise SettingError(
                f"model.sampling.k: {self.k} paths of {num_operators} operators; choose 1 to {num_operators}."
            )

    def weights(self, y: Tensor, ranking: Tensor) -> Tensor:
        """Return one-hot weights with y's gradient, of which :meth:`mix` uses the k highest-ranked."""
        sampled = F.one_hot(ranking[:, 0], y.shape[1]).to(y.dtype)
        return sampled + (y - y.detach())  # in this order, the result is exactly one-hot

    def mix(self, operators: nn.ModuleList, x: Tensor, weights: Tensor, ranking: Sequence[int]) -> Tensor:
        """Compute the sampled operator, and in updates the k - 1 next ones; see :class:`Sampling`."""
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
    """The sampled operator in the forward, the whole gradient of y in the backward: straight-through Gumbel-softmax."""

    def __init__(self) -> None:
        self.k = None
        self.computed = Computed(acting=1, forward=None, backward=1)
