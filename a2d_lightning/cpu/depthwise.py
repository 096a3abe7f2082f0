"""5x5 depthwise convolutions with a faster weight gradient on CPUs."""

from typing import Any

import torch
from torch import Tensor, nn

from a2d_lightning.cpu.kernels import are_plain, kernels

KERNEL = 5

_LANES = 8


class DepthwiseConv5x5(nn.Conv2d):
    """Depthwise 5x5 ``nn.Conv2d`` without bias (see :func:`~a2d_lightning.cpu.accelerate.accelerate`).

    Own code: oneDNN's gradient of depthwise weights is up to ten times slower for kernel widths from 4 than for width
    3, at any height (docs/experiments.md). If the C kernel was not built or does not apply, this class behaves as
    ``nn.Conv2d``.
    """

    @staticmethod
    def replaces(layer: nn.Conv2d) -> bool:
        """Return whether this class can replace the class of ``layer``."""
        return (
            layer.kernel_size == (KERNEL, KERNEL)
            and layer.stride[0] == layer.stride[1]
            and layer.padding == (KERNEL // 2, KERNEL // 2)
            and layer.dilation == (1, 1)
            and layer.padding_mode == "zeros"
            and layer.groups == layer.in_channels == layer.out_channels
            and layer.bias is None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the convolution.

        Args:
            x: Input ``[B, channels, h, w]``.

        Returns:
            Output ``[B, channels, ceil(h / stride), ceil(w / stride)]``.
        """
        if not self._fits(x):
            return super().forward(x)
        out: Tensor = _Convolution.apply(x, self.weight, self.stride[0])
        return out

    def _fits(self, x: Tensor) -> bool:
        return (
            torch.is_grad_enabled()
            and self.weight.requires_grad
            and x.dtype == self.weight.dtype == torch.float32
            and are_plain(x, self.weight)
            and self.out_channels % _LANES == 0
            and x.is_contiguous(memory_format=torch.channels_last)
            and not torch.is_autocast_enabled("cpu")
            and kernels() is not None
        )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return nn.functional.conv2d(x, weight, None, stride, KERNEL // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        again = torch.is_grad_enabled()  # double backward
        wanted = [ctx.needs_input_grad[0], again, False]
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, [ctx.stride] * 2, [KERNEL // 2] * 2, [1, 1], False, [0, 0], len(weight), wanted
        )
        return grad_x, grad_weight if again else _grad_weight(x, gradient, ctx.stride), None


def _grad_weight(x: Tensor, gradient: Tensor, stride: int) -> Tensor:
    """Return the weight gradient ``[C, 1, 5, 5]``; ``x`` and ``gradient`` must be channels_last."""
    images, channels, height, width = x.shape
    out = torch.empty(channels, 1, KERNEL, KERNEL)
    lib = kernels()
    assert lib is not None
    lib.depthwise_of_weight(
        x.numel(), images, height, width, channels, *gradient.shape[2:], stride, x.data_ptr(), gradient.data_ptr(),
        out.data_ptr(),
    )  # fmt: skip
    return out
