"""Operators as a user would write them, outside of the package."""

import torch
from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """A 3x3 convolution whose channels are weighted by a function of their means (arXiv 1709.01507)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()
        )
        self.squeeze = nn.Conv2d(out_channels, 4, 1)
        self.excite = nn.Conv2d(4, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        means = out.mean((2, 3), keepdim=True)
        return out * torch.sigmoid(self.excite(torch.relu(self.squeeze(means))))


def ignores_stride(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, 3, 1, 1)


def fails(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, 3, stride, groups=3)


NOTHING = None
