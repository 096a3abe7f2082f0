"""Layers of hand-designed and searched networks (App. C, App. D), and the shape of an observation."""

import torch
from torch import Tensor, nn

FrameShape = tuple[int, int, int]
"""(stack, height, width) of an observation."""


def conv(in_channels: int, out_channels: int, stride: int, kernel: int) -> nn.Module:
    """Build a standard convolution, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class InvertedResidual(nn.Module):
    """FBNet's block: 1x1 to ``expansion`` times the channels, depthwise, 1x1 back; residual if the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, kernel: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def skip(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Build an identity, or an average pool and 1x1 projection with batch norm if the shape changes (MACs count)."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    # without padding, True would change nothing but Inductor's gradient, which it makes wrong (pytorch issue 198119)
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(
        pool if stride > 1 else nn.Identity(),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """Post-activation residual block (He et al. 2016): two 3x3 convolutions and a shortcut.

    The shortcut is a 1x1 convolution with batch norm where the shape changes, otherwise the identity.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def pooled_features(channels: int) -> list[nn.Module]:
    """Build the last layers of every ResNet-like backbone: global average pool, FC to 256, ReLU."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 256), nn.ReLU(inplace=True)]
