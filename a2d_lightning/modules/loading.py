"""Loading of a run's module from a checkpoint and the configuration in the run's folder."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule
from torch import device as Device

from a2d_lightning.agent_files import AgentCard
from a2d_lightning.runtime.errors import SettingError
from a2d_lightning.runtime.plain_checkpoints import load

M = TypeVar("M", bound=LightningModule)


def load_module(cls: type[M], path: Path, device: Device | str, changes: dict[str, Any]) -> M:
    """Build the module of a run, and load its state from one of the run's checkpoints.

    Args:
        cls: class of which the module must be an instance.
        path: checkpoint file, ``run_dir/checkpoints/x.ckpt``.
        device: device of the module.
        changes: constructor arguments that replace those in ``run_dir/config.yaml``. Without this file, as in runs
            started by a script, all required arguments except game, frame_shape and num_actions.

    Raises:
        SettingError: If the file is not a checkpoint of this package, or belongs to another class or network.
    """
    checkpoint = load(path, device)
    if not isinstance(checkpoint, dict) or "agent_card" not in checkpoint:
        raise SettingError(f"{path} was not written by a2d_lightning; choose another checkpoint.")
    card = AgentCard.from_dict(checkpoint["agent_card"], str(path))
    config_file = path.resolve().parent.parent / "config.yaml"
    linked = {"game": card.game, "frame_shape": card.frame_shape, "num_actions": card.num_actions}
    if config_file.is_file():
        config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
        settings = linked | _settings_of_run(config) | changes
        module = _instantiate(cls, config["model"]["class_path"], settings, path)
    else:
        module = cls(**linked, **changes)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    return module.to(device)


def _settings_of_run(config: dict[str, Any]) -> dict[str, Any]:
    """Return the module's arguments in a run's configuration: those under ``model`` and those linked to ``data``."""
    settings = dict(config["model"].get("init_args") or {})
    frames = config["data"]["frames"]
    if settings.get("agent_frame_size") is not None:
        settings["frame_shape"] = (frames["stack"], frames["size"], frames["size"])
    return settings | {"total_env_steps": config["data"]["total_env_steps"]}


def _instantiate(cls: type[M], class_path: str, settings: dict[str, Any], path: Path) -> M:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model", required=True)
    parsed = parser.parse_object({"model": {"class_path": class_path, "init_args": settings}})
    module = parser.instantiate_classes(parsed).model
    if not isinstance(module, cls):
        raise SettingError(f"{path} is a checkpoint of {type(module).__name__}, not of {cls.__name__}.")
    return module
