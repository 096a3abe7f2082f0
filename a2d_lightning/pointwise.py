"""1x1 convolutions that are matrix products where no gradient is asked for, on CPUs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2d_lightning.native import are_plain


class PointwiseConv(nn.Conv2d):
    """``nn.Conv2d`` of 1x1 kernels without bias.

    Own code: to start oneDNN's convolution takes as long as the arithmetic of the few frames that act (docs/notes.md).
    Its backward is the quicker one, so that updates are left to it.

    Args:
        in_channels: of ``[B, in_channels, h, w]``.
        out_channels: of what comes out.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, bias=False)

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
