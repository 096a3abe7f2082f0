"""Overlays for every stage: config files whose ``per_model`` section holds settings of particular modules.

LightningCLI merges ``--config A --config B`` and rejects keys that the chosen model lacks. A file such as
``laptop.yaml`` could therefore not shrink the supernet *and* serve the teacher. This module merges the section of the
chosen model over the rest of the file before LightningCLI parses it.
"""

import copy
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from a2d_lightning.cli.callback_settings import changed_callbacks, from_arguments
from a2d_lightning.runtime.errors import SettingError

PER_MODEL = "per_model"

STAGES = ("TeacherModule", "SearchModule", "AgentModule", "RandomModule")


class _EachKeyOnce(yaml.SafeLoader):
    """YAML loader that rejects duplicate keys; SafeLoader silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping as SafeLoader does.

        Raises:
            yaml.constructor.ConstructorError: If a key is given twice.
        """
        keys = [(key.value, key.start_mark) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for i, (key, mark) in enumerate(keys):
            if key != "<<" and key in [earlier for earlier, _ in keys[:i]]:
                raise yaml.constructor.ConstructorError(problem=f"{key!r} is given twice", problem_mark=mark)
        return super().construct_mapping(node, deep)


def expand_overlays(args: list[str]) -> list[str]:
    """Replace overlays by inline configs for the chosen model, and apply options that change callbacks.

    Args:
        args: Command-line arguments.

    Returns:
        Arguments for LightningCLI; each changed config is given as JSON instead of its path.

    Raises:
        SettingError: If a config file cannot be read or is not YAML, an overlay precedes its stage, ``per_model`` is
            invalid, or a callback to change is not listed.
    """
    args = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--config=") else (arg,))]
    args, of_callbacks = from_arguments(args)
    places = [i for i, arg in enumerate(args) if arg in ("--config", "-c") and i + 1 < len(args)]
    for i in places:
        args[i + 1] = config_path(args[i + 1])
    contents = {i: _read(args[i + 1]) for i in places}
    model = _model_name(args, list(contents.values()))
    _check_order([(args[i + 1], content) for i, content in contents.items()])
    for_model = [
        _for_model(content, model, args[i + 1]) if PER_MODEL in content else content for i, content in contents.items()
    ]
    if of_callbacks:
        for_model.append({"trainer": {"callbacks": of_callbacks}})
        last = places[-1] + 2 if places else 1
        args[last:last] = ["--config", ""]
        places.append(last)
    for i, content in zip(places, changed_callbacks(for_model), strict=True):
        if content is not contents.get(i):
            args[i + 1] = json.dumps(content)
    return args


def _check_order(configs: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Reject an overlay before its stage: the stage would overwrite the overlay's settings.

    Raises:
        SettingError: If there is such an overlay.
    """
    overlay = None
    for path, content in configs:
        model = content.get("model")
        if overlay is not None and isinstance(model, dict) and "class_path" in model:
            raise SettingError(f"--config: {overlay} is an overlay and comes before {path}; give it after the stage.")
        if PER_MODEL in content:
            overlay = path


def merged_configs(paths: Sequence[str]) -> dict[str, Any]:
    """Merge config files for the model that they choose; later files override earlier ones.

    Args:
        paths: Config files in order.

    Returns:
        Merged settings.

    Raises:
        SettingError: If a file cannot be read or is not YAML, ``per_model`` is invalid, or a callback to change is
            not listed.
    """
    contents = [_read(path) for path in paths]
    model = _model_name([], contents)
    for_model = [
        _for_model(content, model, path) if PER_MODEL in content else content
        for path, content in zip(paths, contents, strict=True)
    ]
    merged: dict[str, Any] = {}
    for content in changed_callbacks(for_model):
        merged = _merged(merged, content)
    return merged


def config_path(name: str) -> str:
    """Return the path of a config of the package (``search``, ``laptop``); ``name`` where it is a file or unknown.

    Args:
        name: Path of a file, or the name of a config.
    """
    found = [path for path in _config_files() if path.stem == name]
    return str(found[0]) if found and not Path(name).exists() else name


def _config_files() -> list[Path]:
    """Return the configs of the package, stages first."""
    configs = Path(importlib.import_module("a2d_lightning.configs").__file__ or "").parent
    return [*sorted(configs.glob("*.yaml")), *sorted((configs / "scale").glob("*.yaml"))]


def _config_names() -> list[str]:
    return [path.stem for path in _config_files()]


def _read(path: str) -> dict[str, Any]:
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _EachKeyOnce)
    except UnicodeDecodeError as error:
        raise SettingError(f"--config: {path!r} is not YAML ({error}).") from error
    except OSError as error:
        raise SettingError(
            f"--config: {path!r} cannot be read ({error.strerror}); name a file, or a config of the package: "
            f"{', '.join(_config_names())}."
        ) from error
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise SettingError(f"--config: {path!r} is not YAML: {where}") from error
    if not isinstance(content, dict):
        raise SettingError(f"--config: {path!r} contains no settings.")
    return content


def _model_name(args: list[str], contents: list[dict[str, Any]]) -> str:
    name = ""
    for content in contents:
        model = content.get("model")
        if isinstance(model, dict):
            name = str(model.get("class_path", name))
    for i, arg in enumerate(args):
        if arg == "--model" and i + 1 < len(args):
            name = args[i + 1]
        elif arg.startswith("--model="):
            name = arg.removeprefix("--model=")
    return name


def _lineage(class_path: str) -> list[str]:
    """Return the names of a class and its bases in method resolution order."""
    module, _, name = class_path.rpartition(".")
    if not module:
        return [name]
    try:
        return [kind.__name__ for kind in getattr(importlib.import_module(module), name).__mro__]
    except (ImportError, AttributeError):
        return [name]  # LightningCLI reports the error


def _for_model(content: dict[str, Any], model: str, path: str) -> dict[str, Any]:
    common = {key: value for key, value in content.items() if key != PER_MODEL}
    parts = content[PER_MODEL]
    if not isinstance(parts, dict):
        raise SettingError(f"--config: {path!r}: {PER_MODEL} must map names of modules to settings, not {parts!r}.")
    lineage = _lineage(model)
    if unknown := [name for name in parts if name not in (*STAGES, *lineage)]:
        raise SettingError(
            f"--config: {path!r}: {PER_MODEL}.{unknown[0]}: there is no such module; choose one of {', '.join(STAGES)}."
        )
    nearest = next((name for name in lineage if name in parts), model)
    own = parts.get(nearest) or {}
    if not isinstance(own, dict):
        raise SettingError(f"--config: {path!r}: {PER_MODEL}.{nearest} must contain settings, not {own!r}.")
    return _merged(common, own)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
