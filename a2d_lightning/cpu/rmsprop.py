"""RMSProp in one pass over the weights on CPUs; torch has no fused version and makes ten passes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.rmsprop import rmsprop

from a2d_lightning.cpu.kernels import addresses, kernels, sizes


class RMSprop(torch.optim.RMSprop):
    """``torch.optim.RMSprop`` with a C kernel: same arguments, same state, same steps up to rounding.

    The kernel (:mod:`a2d_lightning.cpu.kernels`) updates float32 weights on CPUs, without momentum, weight decay and
    centering. Torch's code handles all other cases.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step down the gradient.

        Args:
            closure: Called first, with gradients enabled.

        Returns:
            The result of ``closure``, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights: list[Tensor] = []
            gradients: list[Tensor] = []
            squares: list[Tensor] = []
            averages: list[Tensor] = []
            momenta: list[Tensor] = []
            steps: list[Tensor] = []
            has_complex = self._init_group(group, weights, gradients, squares, momenta, averages, steps)
            if weights and _fits(group, weights, gradients, squares):
                _step(group, weights, gradients, squares, steps)
            else:
                settings = {name: group[name] for name in self.defaults}
                rmsprop(weights, gradients, squares, averages, momenta, steps, has_complex=has_complex, **settings)
        return loss


def _fits(group: dict[str, Any], *tensors: Sequence[Tensor]) -> bool:
    others = ("momentum", "weight_decay", "centered", "maximize", "capturable", "differentiable")
    return (
        not any(group[name] for name in others)
        and isinstance(group["lr"], float)
        and all(
            weight.device.type == "cpu"
            and weight.dtype == gradient.dtype == square.dtype == torch.float32
            and weight.stride() == gradient.stride() == square.stride()
            and (weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last))
            for weight, gradient, square in zip(*tensors, strict=True)
        )
        and kernels() is not None
    )


def _step(
    group: dict[str, Any],
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: list[Tensor],
) -> None:
    lib = kernels()
    assert lib is not None
    torch._foreach_add_(steps, torch.ones(()), alpha=1.0)
    each = sizes(weights)
    elements = sum(each)
    lib.rmsprop(
        elements, len(each), elements, group["lr"], group["alpha"], group["eps"], each, addresses(weights),
        addresses(gradients), addresses(squares),
    )  # fmt: skip
    torch.autograd.graph.increment_version(weights)
