"""The search space (App. D): nine operators a cell, the plan of cells, MACs per operator, Architecture <-> JSON."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from a2d_lightning.atomic_file import write_atomically
from a2d_lightning.depthwise import depthwise
from a2d_lightning.errors import SettingError
from a2d_lightning.fused_batch_norm import FusedSequential
from a2d_lightning.machine_memory import check_fits
from a2d_lightning.macs import count_macs
from a2d_lightning.pointwise import PointwiseConv

SCHEMA_VERSION = 1

FrameShape = tuple[int, int, int]
"""(stack, height, width) of an observation."""


def conv(in_channels: int, out_channels: int, stride: int, kernel: int) -> nn.Module:
    """Standard convolution, batch norm, ReLU."""
    return FusedSequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class InvertedResidual(nn.Module):
    """FBNet's block: 1x1 to ``expansion`` times the channels, depthwise, 1x1 back; residual where shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, kernel: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.body = FusedSequential(
            PointwiseConv(in_channels, hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            depthwise(hidden, stride, kernel),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            PointwiseConv(hidden, out_channels),
            nn.BatchNorm2d(out_channels),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def skip(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Identity; where the shape changes, average pool and a 1x1 projection with batch norm (its MACs count)."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    # without padding count_include_pad changes nothing, but Inductor's gradient is wrong with it (pytorch issue 198119)
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
    return FusedSequential(
        pool if stride > 1 else nn.Identity(),
        PointwiseConv(in_channels, out_channels),
        nn.BatchNorm2d(out_channels),
    )


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
        return FusedSequential(*self.stem(stack), *cells, *pooled_features(self.channels[-1]))


def pooled_features(channels: int) -> list[nn.Module]:
    """The end of every ResNet-like backbone: global average pool, FC to 256, ReLU."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 256), nn.ReLU(inplace=True)]


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


@dataclass(frozen=True)
class Architecture:
    """A derived backbone, readable and complete without any search code."""

    operators: tuple[str, ...]
    """One name of :data:`OPERATORS` a cell."""
    plan: Plan
    frame_shape: FrameShape
    macs: int
    """Multiply-accumulates of the backbone for one observation, heads left out."""
    parameters: int
    game: str = ""
    teacher: str = ""
    env_steps: int = 0
    schema_version: int = field(default=SCHEMA_VERSION)

    def build(self, frame_shape: FrameShape) -> nn.Sequential:
        """The backbone with fresh weights, for frames of ``frame_shape``."""
        cells = [
            OPERATORS[name](cell.in_channels, cell.out_channels, cell.stride)
            for name, cell in zip(self.operators, self.plan.cells(), strict=True)
        ]
        return self.plan.assemble(frame_shape[0], cells)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the schema's version first."""
        content = asdict(self)
        return {"schema_version": content.pop("schema_version"), **content}

    def save(self, path: Path) -> None:
        """Writes JSON, a field a line."""
        fields = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in self.to_dict().items()]
        write_atomically(path, ("{\n" + ",\n".join(fields) + "\n}\n").encode())

    @staticmethod
    def load(path: str | Path) -> "Architecture":
        """Reads and checks a JSON file.

        Raises:
            SettingError: missing, broken, of another version, or with operators that are not in the search space.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingError(
                f"model.architecture: {str(path)!r} cannot be read ({error.strerror}); "
                "a search writes architectures/last.json into its run_dir."
            ) from error
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise SettingError(f"model.architecture: {str(path)!r} is not JSON ({error}).") from error
        source = f"model.architecture: {str(path)!r}"
        architecture = Architecture.from_dict(content, source)
        architecture.check_counts(source)
        return architecture

    def check_counts(self, source: str) -> None:
        """Check that ``macs`` and ``parameters`` are those of the operators.

        Raises:
            SettingError: ``source`` and what they should be.
        """
        with torch.random.fork_rng(devices=[]):  # weights that are only counted are no reason for others to differ
            backbone = self.build(self.frame_shape)
        counted = {
            "macs": count_macs(backbone, torch.Size(self.frame_shape)),
            "parameters": sum(weights.numel() for weights in backbone.parameters()),
        }
        for name, number in counted.items():
            if getattr(self, name) != number:
                raise SettingError(f"{source}: {name!r} is {getattr(self, name)}, and its operators have {number}.")

    @staticmethod
    def from_dict(content: Any, source: str) -> "Architecture":
        """Checks every field.

        Raises:
            SettingError: ``source`` and what is wrong with it.
        """
        if not isinstance(content, dict):
            raise SettingError(f"{source} holds no JSON object.")
        version = content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise SettingError(
                f"{source} has schema_version {version!r}, this release reads {SCHEMA_VERSION}; derive it again."
            )
        expected: dict[str, type | tuple[type, ...]] = {
            "operators": (list, tuple),
            "plan": dict,
            "frame_shape": (list, tuple),
            "macs": int,
            "parameters": int,
            "game": str,
            "teacher": str,
            "env_steps": int,
        }
        for name, kind in expected.items():
            if not isinstance(content.get(name), kind) or isinstance(content[name], bool):
                raise SettingError(f"{source}: {name!r} is missing or of the wrong type: {content.get(name)!r}.")
        lists = {k: content["plan"].get(k) for k in ("cells_per_group", "channels")}
        lists["frame_shape"] = content["frame_shape"]
        for name, numbers in lists.items():
            if not isinstance(numbers, list | tuple) or not all(type(n) is int and n > 0 for n in numbers):
                raise SettingError(f"{source}: {name!r} must be a list of positive integers, not {numbers!r}.")
        if len(content["frame_shape"]) != 3:
            raise SettingError(
                f"{source}: 'frame_shape' must be [stack, height, width], not {content['frame_shape']!r}."
            )
        try:
            plan = Plan(tuple(lists["cells_per_group"]), tuple(lists["channels"]))
        except SettingError as error:
            raise SettingError(f"{source}: {error}") from error
        unknown = [name for name in content["operators"] if not isinstance(name, str) or name not in OPERATORS]
        if unknown:
            raise SettingError(f"{source}: unknown operator {unknown[0]!r}; known are {', '.join(OPERATORS)}.")
        if len(content["operators"]) != len(plan.cells()):
            raise SettingError(
                f"{source}: {len(content['operators'])} operators for {len(plan.cells())} cells; one each is needed."
            )
        stack, height, width = content["frame_shape"]
        return Architecture(
            operators=tuple(content["operators"]),
            plan=plan,
            frame_shape=(stack, height, width),
            macs=content["macs"],
            parameters=content["parameters"],
            game=content["game"],
            teacher=content["teacher"],
            env_steps=content["env_steps"],
        )
