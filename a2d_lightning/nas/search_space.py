"""The search space (App. D): nine operators a cell, the plan of cells, MACs per operator."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from a2d_lightning.models.layers import FrameShape, InvertedResidual, conv, pooled_features, skip
from a2d_lightning.models.macs import count_macs
from a2d_lightning.runtime.errors import SettingError
from a2d_lightning.runtime.machine_memory import check_fits


def _inverted_residual(kernel: int, expansion: int) -> Callable[[int, int, int], nn.Module]:
    return lambda i, o, s: InvertedResidual(i, o, s, kernel, expansion)


OPERATORS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "conv_k3": lambda i, o, s: conv(i, o, s, 3),
    "conv_k5": lambda i, o, s: conv(i, o, s, 5),
    **{f"ir_k{k}_e{e}": _inverted_residual(k, e) for k in (3, 5) for e in (1, 3, 5)},
    "skip": skip,
}
"""O_i: name to builder of (in channels, out channels, stride)."""


@dataclass(frozen=True)
class Cell:
    """One searchable cell: what goes in and what comes out, whichever operator it becomes."""

    in_channels: int
    out_channels: int
    stride: int


@dataclass(frozen=True)
class Plan:
    """Groups of cells (paper: 5, 4, 5 of 16, 32, 64 channels); the first cell of groups 2 and on has stride 2."""

    cells_per_group: tuple[int, ...] = (5, 4, 5)
    channels: tuple[int, ...] = (16, 32, 64)

    def __post_init__(self) -> None:
        given = f"plan: cells_per_group {list(self.cells_per_group)} and channels {list(self.channels)}"
        if not self.cells_per_group or len(self.cells_per_group) != len(self.channels):
            raise SettingError(f"{given} must be two lists of one length, an entry a group.")
        if min(*self.cells_per_group, *self.channels, 1) < 1:
            raise SettingError(f"{given} must be positive.")
        groups = zip(self.cells_per_group, self.channels, strict=True)
        weights = sum(9 * cells * channels**2 for cells, channels in groups)
        check_fits(4 * weights + 10_000 * sum(self.cells_per_group), given)  # of conv_k3, and some 10 kB a module

    def cells(self) -> list[Cell]:
        """The cells from input to output."""
        cells = []
        in_channels = self.channels[0]
        for group, (count, out_channels) in enumerate(zip(self.cells_per_group, self.channels, strict=True)):
            for position in range(count):
                cells.append(Cell(in_channels, out_channels, 2 if group > 0 and position == 0 else 1))
                in_channels = out_channels
        return cells

    def stem(self, stack: int) -> list[nn.Module]:
        """The ResNet's first layer: 3x3 of stride 2, batch norm, ReLU."""
        return [
            nn.Conv2d(stack, self.channels[0], 3, 2, 1, bias=False),
            nn.BatchNorm2d(self.channels[0]),
            nn.ReLU(inplace=True),
        ]

    def assemble(self, stack: int, cells: Sequence[nn.Module]) -> nn.Sequential:
        """A whole backbone around ``cells``: derived networks and the supernet are built alike."""
        return nn.Sequential(*self.stem(stack), *cells, *pooled_features(self.channels[-1]))


def operator_macs(plan: Plan, frame_shape: FrameShape) -> tuple[Tensor, int]:
    """MACs of each operator of each cell for one observation, by ptflops at the cell's actual input size.

    Returns:
        float64 ``[cells, operators]``, and the MACs of what is not searched (stem and last FC; no heads).
    """
    size = torch.Size(frame_shape)
    table = []
    height, width = (_halved(x) for x in frame_shape[1:])
    with torch.random.fork_rng(devices=[]):  # weights that are only counted are no reason for others to differ
        fixed = count_macs(nn.Sequential(*plan.stem(frame_shape[0])), size) + plan.channels[-1] * 256
        for cell in plan.cells():
            table.append(_macs_of_each(cell, height, width))
            if cell.stride == 2:
                height, width = _halved(height), _halved(width)
    return torch.tensor(table, dtype=torch.float64), fixed


@functools.cache  # most cells of a group are alike
def _macs_of_each(cell: Cell, height: int, width: int) -> list[int]:
    shape = torch.Size((cell.in_channels, height, width))
    return [count_macs(build(cell.in_channels, cell.out_channels, cell.stride), shape) for build in OPERATORS.values()]


def _halved(size: int) -> int:
    return (size + 1) // 2
