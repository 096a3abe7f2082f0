"""1x1 convolutions that are matrix products where no gradient is asked for, on CPUs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2d_lightning.cpu.kernels import are_plain


class PointwiseConv(nn.Conv2d):
    """``nn.Conv2d`` of 1x1 kernels without stride and bias (see :func:`~a2d_lightning.cpu.accelerate.accelerate`).

    Own code: to start oneDNN's convolution takes as long as the arithmetic of the few frames that act (docs/notes.md).
    Its backward is the quicker one, so that updates are left to it.
    """

    @staticmethod
    def replaces(layer: nn.Conv2d) -> bool:
        """Return whether ``layer`` is of this kind."""
        return (
            layer.kernel_size == layer.stride == (1, 1)
            and layer.padding == (0, 0)
            and layer.groups == 1
            and layer.bias is None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Of ``[B, in_channels, h, w]``."""
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
