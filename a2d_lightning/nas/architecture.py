"""A derived network as plain values, and its JSON file."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from a2d_lightning.models.layers import FrameShape
from a2d_lightning.models.macs import count_macs
from a2d_lightning.nas.operators import known_operators
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.runtime.atomic_file import write_atomically
from a2d_lightning.runtime.errors import SettingError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Architecture:
    """Description of a derived backbone, which can be built from it without any search code.

    Examples:
        >>> from a2d_lightning.nas.search_space import Plan
        >>> plan = Plan(cells_per_group=(1, 1), channels=(8, 16))
        >>> architecture = Architecture(("ir_k3_e1", "skip"), plan, (4, 42, 42), macs=0, parameters=0)
        >>> architecture.build((4, 42, 42))(torch.zeros(1, 4, 42, 42)).shape
        torch.Size([1, 256])
    """

    operators: tuple[str, ...]
    """Name of each cell's operator, of :func:`~a2d_lightning.nas.operators.known_operators`."""
    plan: Plan
    frame_shape: FrameShape
    macs: int
    """Multiply-accumulates of the backbone for one observation, without heads."""
    parameters: int
    game: str = ""
    teacher: str = ""
    env_steps: int = 0
    schema_version: int = field(default=SCHEMA_VERSION)

    def build(self, frame_shape: FrameShape) -> nn.Sequential:
        """Build the backbone with fresh weights, for frames of ``frame_shape`` (stack, height, width)."""
        builders = known_operators()
        cells = [
            builders[name](cell.in_channels, cell.out_channels, cell.stride)
            for name, cell in zip(self.operators, self.plan.cells(), strict=True)
        ]
        return self.plan.assemble(frame_shape[0], cells)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, with the schema's version first."""
        content = asdict(self) | {"plan": self.plan.to_dict()}
        return {"schema_version": content.pop("schema_version"), **content}

    def save(self, path: Path) -> None:
        """Write a JSON file with one field per line."""
        fields = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in self.to_dict().items()]
        write_atomically(path, ("{\n" + ",\n".join(fields) + "\n}\n").encode())

    @staticmethod
    def load(path: str | Path) -> "Architecture":
        """Read and check a JSON file.

        Raises:
            SettingError: If the file is missing or broken, has another schema version, names operators outside the
                search space, or its counts are wrong.
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

        Args:
            source: origin of the architecture, for the error message.

        Raises:
            SettingError: If ``macs`` or ``parameters`` is wrong.
        """
        with torch.random.fork_rng(devices=[]):  # weights that are only counted must not advance the global generator
            backbone = self.build(self.frame_shape)
        counted = {
            "macs": count_macs(backbone, torch.Size(self.frame_shape)),
            "parameters": sum(weights.numel() for weights in backbone.parameters()),
        }
        for name, number in counted.items():
            if getattr(self, name) != number:
                raise SettingError(f"{source}: {name!r} is {getattr(self, name)}, but the operators have {number}.")

    @staticmethod
    def from_dict(content: Any, source: str) -> "Architecture":
        """Build an architecture from plain values, and check every field except the counts.

        Args:
            content: as :meth:`to_dict` returns it.
            source: origin of ``content``, for the error messages.

        Raises:
            SettingError: If a field is missing or wrong.
        """
        if not isinstance(content, dict):
            raise SettingError(f"{source} contains no JSON object.")
        version = content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise SettingError(
                f"{source} has schema_version {version!r}, but this release reads {SCHEMA_VERSION}; derive the "
                "architecture again."
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
        shape = content["frame_shape"]
        if len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
            raise SettingError(f"{source}: 'frame_shape' must be three positive integers (stack, h, w), not {shape!r}.")
        plan = Plan.from_dict(content["plan"], source)
        known = known_operators()
        unknown = [name for name in content["operators"] if not isinstance(name, str) or name not in known]
        if unknown:
            raise SettingError(
                f"{source}: unknown operator {unknown[0]!r}; known operators are {', '.join(known)}. Set the builders "
                "of other operators with model.operators."
            )
        if len(content["operators"]) != len(plan.cells()):
            raise SettingError(
                f"{source}: {len(content['operators'])} operators for {len(plan.cells())} cells; give one operator "
                "per cell."
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
