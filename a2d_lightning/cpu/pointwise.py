"""1x1 convolutions as matrix multiplications during inference on CPUs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2d_lightning.cpu.kernels import are_plain


class PointwiseConv(nn.Conv2d):
    """1x1 ``nn.Conv2d`` without stride and bias (see :func:`~a2d_lightning.cpu.accelerate.accelerate`).

    Own code: with the few frames of an acting step, starting oneDNN's convolution takes as long as the arithmetic
    (docs/experiments.md). Updates use oneDNN, whose backward pass is faster than that of a matrix multiplication.
    """

    @staticmethod
    def replaces(layer: nn.Conv2d) -> bool:
        """Return whether this class can replace the class of ``layer``."""
        return (
            layer.kernel_size == layer.stride == (1, 1)
            and layer.padding == (0, 0)
            and layer.groups == 1
            and layer.bias is None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the convolution.

        Args:
            x: Input ``[B, in_channels, h, w]``.

        Returns:
            Output ``[B, out_channels, h, w]``.
        """
        if not self._fits(x):
            return super().forward(x)
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1)).permute(0, 3, 1, 2)  # [B, out_channels, h, w]

    def _fits(self, x: Tensor) -> bool:
        return (
            not torch.is_grad_enabled()
            and x.dtype == self.weight.dtype == torch.float32
            and are_plain(x, self.weight)
            and x.is_contiguous(memory_format=torch.channels_last)
            and not torch.is_autocast_enabled("cpu")
        )
