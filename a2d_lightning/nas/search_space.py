"""The search space (App. D): nine operators per cell, the plan of the cells, MACs of each operator."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from a2d_lightning.models.layers import FrameShape, pooled_features
from a2d_lightning.models.macs import count_macs
from a2d_lightning.nas.operators import OPERATORS, Builder
from a2d_lightning.runtime.errors import SettingError
from a2d_lightning.runtime.machine_memory import check_fits


@dataclass(frozen=True)
class Cell:
    """Input and output of a searchable cell, the same for all its operators."""

    in_channels: int
    out_channels: int
    stride: int


@dataclass(frozen=True)
class Plan:
    """Groups of cells after a stem.

    Args:
        cells_per_group: number of cells of each group (paper: 5, 4, 5).
        channels: output channels of each group (paper: 16, 32, 64).
        stem_stride: stride of the stem's convolution (paper: 2).
        strides: stride of the first cell of each group; 1 for the first group and 2 for the others if absent (paper).
    """

    cells_per_group: tuple[int, ...] = (5, 4, 5)
    channels: tuple[int, ...] = (16, 32, 64)
    stem_stride: int = 2
    strides: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        given = f"plan: cells_per_group {list(self.cells_per_group)} and channels {list(self.channels)}"
        if not self.cells_per_group or len(self.cells_per_group) != len(self.channels):
            raise SettingError(f"{given} must be two lists of equal length, with one entry per group.")
        if min(*self.cells_per_group, *self.channels, 1) < 1:
            raise SettingError(f"{given} must be positive.")
        strides = f"plan: stem_stride {self.stem_stride} and strides {list(self.group_strides)}"
        if len(self.group_strides) != len(self.channels) or not all(1 <= s <= 4 for s in self._all_strides()):
            raise SettingError(f"{strides} must be 1 to 4, with one stride per group.")
        groups = zip(self.cells_per_group, self.channels, strict=True)
        weights = sum(9 * cells * channels**2 for cells, channels in groups)
        check_fits(4 * weights + 10_000 * sum(self.cells_per_group), given)  # conv_k3's weights, some 10 kB a cell

    @property
    def group_strides(self) -> tuple[int, ...]:
        """Return the stride of the first cell of each group."""
        return self.strides if self.strides is not None else (1, *[2] * (len(self.channels) - 1))

    def _all_strides(self) -> tuple[int, ...]:
        return (self.stem_stride, *self.group_strides)

    def cells(self) -> list[Cell]:
        """Return the cells from input to output."""
        cells = []
        in_channels = self.channels[0]
        groups = zip(self.cells_per_group, self.channels, self.group_strides, strict=True)
        for count, out_channels, stride in groups:
            for position in range(count):
                cells.append(Cell(in_channels, out_channels, stride if position == 0 else 1))
                in_channels = out_channels
        return cells

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without strides that are the paper's."""
        content: dict[str, Any] = {"cells_per_group": list(self.cells_per_group), "channels": list(self.channels)}
        if self._all_strides() != Plan(self.cells_per_group, self.channels)._all_strides():
            content |= {"stem_stride": self.stem_stride, "strides": list(self.group_strides)}
        return content

    @staticmethod
    def from_dict(content: Any, source: str) -> "Plan":
        """Read and check plain values.

        Raises:
            SettingError: If a field is missing or invalid; the message starts with ``source``.
        """
        if not isinstance(content, dict):
            raise SettingError(f"{source}: 'plan' must be an object, not {content!r}.")
        lists = {name: content.get(name) for name in ("cells_per_group", "channels")}
        lists["stem_stride"] = [content.get("stem_stride", 2)]
        if content.get("strides") is not None:
            lists["strides"] = content["strides"]
        for name, numbers in lists.items():
            if not isinstance(numbers, list | tuple) or not all(type(n) is int and n > 0 for n in numbers):
                raise SettingError(f"{source}: {name!r} must be a list of positive integers, not {numbers!r}.")
        settings: dict[str, Any] = {name: tuple(numbers or ()) for name, numbers in lists.items()}
        settings["stem_stride"] = settings["stem_stride"][0]
        try:
            return Plan(**settings)
        except SettingError as error:
            raise SettingError(f"{source}: {error}") from error

    def stem(self, stack: int) -> list[nn.Module]:
        """Build the ResNet's first layer for ``stack`` input frames: 3x3 convolution, batch norm, ReLU."""
        return [
            nn.Conv2d(stack, self.channels[0], 3, self.stem_stride, 1, bias=False),
            nn.BatchNorm2d(self.channels[0]),
            nn.ReLU(inplace=True),
        ]

    def assemble(self, stack: int, cells: Sequence[nn.Module]) -> nn.Sequential:
        """Build a whole backbone around ``cells``, for derived networks and the supernet alike.

        Args:
            stack: number of input frames.
            cells: one module for each of :meth:`cells`.
        """
        return nn.Sequential(*self.stem(stack), *cells, *pooled_features(self.channels[-1]))


def operator_macs(
    plan: Plan, frame_shape: FrameShape, operators: Mapping[str, Builder] = OPERATORS
) -> tuple[Tensor, int]:
    """Count the MACs of each operator of each cell for one observation, at the cell's actual input size.

    Args:
        plan: groups of cells.
        frame_shape: (stack, height, width).
        operators: builders by name.

    Returns:
        float64 ``[cells, operators]``, and the MACs of the layers that are not searched (stem and last FC; no heads).
    """
    size = torch.Size(frame_shape)
    table = []
    height, width = (_strided(x, plan.stem_stride) for x in frame_shape[1:])
    with torch.random.fork_rng(devices=[]):  # weights that are only counted must not advance the global generator
        fixed = count_macs(nn.Sequential(*plan.stem(frame_shape[0])), size) + plan.channels[-1] * 256
        for cell in plan.cells():
            table.append([_macs_of(build, cell, height, width) for build in operators.values()])
            height, width = _strided(height, cell.stride), _strided(width, cell.stride)
    return torch.tensor(table, dtype=torch.float64), fixed


@functools.cache  # most cells of a group are the same
def _macs_of(build: Builder, cell: Cell, height: int, width: int) -> int:
    operator = build(cell.in_channels, cell.out_channels, cell.stride)
    return count_macs(operator, torch.Size((cell.in_channels, height, width)))


def _strided(size: int, stride: int) -> int:
    """Return the size of a map after a layer of this stride."""
    return -(-size // stride)
