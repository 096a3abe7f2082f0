"""A derived network as plain values, and its JSON file."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from a2d_lightning.models.layers import FrameShape
from a2d_lightning.models.macs import count_macs
from a2d_lightning.nas.search_space import OPERATORS, Plan
from a2d_lightning.runtime.atomic_file import write_atomically
from a2d_lightning.runtime.errors import SettingError

SCHEMA_VERSION = 1


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
