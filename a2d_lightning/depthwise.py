"""5x5 depthwise convolutions with a quicker gradient of their weights on CPUs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

KERNEL = 5

SLOW_ABOVE = 2**17
"""Elements of an input; two calls and two copies take longer than one slow call below."""


def depthwise(channels: int, stride: int, kernel: int) -> nn.Conv2d:
    """A kernel of its own for each channel, without bias; halves height and width by a stride of 2."""
    if kernel == KERNEL:
        return DepthwiseConv5x5(channels, stride)
    return nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)


class DepthwiseConv5x5(nn.Conv2d):
    """``nn.Conv2d`` of one 5x5 kernel a channel, without bias.

    Own code: oneDNN's kernel for the gradient of depthwise weights is up to ten times slower from a width of 4 on than
    at 3, whatever the height (docs/notes.md), so the gradient is put together from that of two 5x3 kernels.

    Args:
        channels: in and out.
        stride: of height and width.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels, channels, KERNEL, stride, KERNEL // 2, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of ``[B, channels, h, w]``."""
        if x.numel() > SLOW_ABOVE and self._by_onednn(x):
            out: Tensor = _Convolution.apply(x, self.weight, self.stride[0])
            return out
        return super().forward(x)

    def _by_onednn(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and self.weight.requires_grad
            and torch.is_grad_enabled()
            and torch.backends.mkldnn.is_available()
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
        return nn.functional.conv2d(x, weight, None, stride, KERNEL // 2, groups=len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        x, weight, ctx.stride = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weight = ctx.saved_tensors
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = conv2d_input(x.shape, weight, gradient, ctx.stride, KERNEL // 2, 1, len(weight))
        return of_x, _of_weights(x, gradient, ctx.stride), None


def _of_weights(x: Tensor, gradient: Tensor, stride: int) -> Tensor:
    """The gradient of the weights, ``[C, 1, 5, 5]``.

    Column j is the sum over columns c of gradient(c) x(stride c + j - 2), where x is 0 outside. With two columns of 0
    on the left, a kernel of width 3 without padding gives j = 0 to 2; with two on the right, j = 2 to 4.
    """
    height, width = x.shape[2:]
    wider = torch.empty(*x.shape[:2], height, width + 2, dtype=x.dtype, memory_format=torch.channels_last)
    wider[..., :2] = 0
    wider[..., 2:] = x
    left = _of_three_columns(wider, gradient, stride)
    wider = torch.empty_like(wider)
    wider[..., :-2] = x
    wider[..., -2:] = 0
    return torch.cat([left[..., :2], _of_three_columns(wider, gradient, stride)], -1)


def _of_three_columns(x: Tensor, gradient: Tensor, stride: int) -> Tensor:
    """The gradient of 5x3 weights, ``[C, 1, 5, 3]``."""
    channels = x.shape[1]
    size = torch.Size([channels, 1, KERNEL, 3])
    found: Tensor = conv2d_weight(x, size, gradient, stride, (KERNEL // 2, 0), 1, channels)
    return found
