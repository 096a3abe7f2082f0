"""Changes to settings of the callbacks listed in a config, addressed by class name.

LightningCLI can only replace the whole list. With this module, ``--trainer.callbacks.TemperatureAnnealing.initial 3``,
or ``trainer: {callbacks: {TemperatureAnnealing: {initial: 3}}}`` in a config, changes one setting and keeps the others.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any

import yaml

from a2d_lightning.runtime.errors import SettingError

OPTION = re.compile(r"--trainer\.callbacks\.([A-Z]\w*)\.(\w+)(?:=(.*))?", re.DOTALL)


def from_arguments(args: list[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Split options of the form ``--trainer.callbacks.<class>.<setting>`` from the other arguments.

    Args:
        args: Command-line arguments.

    Returns:
        The other arguments, and values by callback class and setting.

    Raises:
        SettingError: If an option has no value.
    """
    others: list[str] = []
    changes: dict[str, dict[str, Any]] = {}
    rest = iter(args)
    for arg in rest:
        found = OPTION.fullmatch(arg)
        if found is None:
            others.append(arg)
            continue
        value = found[3] if found[3] is not None else next(rest, None)
        if value is None:
            raise SettingError(f"{arg}: a value must follow.")
        changes.setdefault(found[1], {})[found[2]] = yaml.safe_load(value)
    return others, changes


def changed_callbacks(contents: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace each mapping of callback settings by the list of callbacks with these settings applied.

    Args:
        contents: Contents of config files in command-line order.

    Returns:
        The contents in the same order; contents without such a mapping are the same objects.

    Raises:
        SettingError: If no earlier config lists the callback.
    """
    listed: list[Any] = []
    changed = []
    for content in contents:
        trainer = content.get("trainer")
        if not isinstance(trainer, dict) or "callbacks" not in trainer:
            changed.append(content)
            continue
        asked = trainer["callbacks"]
        if isinstance(asked, dict) and "class_path" not in asked:
            listed = _changed(listed, asked)
            changed.append({**content, "trainer": {**trainer, "callbacks": listed}})
        else:
            listed = asked if isinstance(asked, list) else [] if asked is None else [asked]
            changed.append(content)
    return changed


def _changed(listed: list[Any], changes: dict[str, Any]) -> list[Any]:
    listed = [{"class_path": each} if isinstance(each, str) else copy.deepcopy(each) for each in listed]
    for name, settings in changes.items():
        ours = [each for each in listed if _class_name(each) == name]
        if not ours or not isinstance(settings, dict):
            known = ", ".join(sorted({_class_name(each) for each in listed}))
            raise SettingError(
                f"trainer.callbacks.{name}: there is no such callback in the configs; they list {known or 'none'}."
            )
        for each in ours:
            each["init_args"] = {**(each.get("init_args") or {}), **settings}
    return listed


def _class_name(callback: dict[str, Any]) -> str:
    return str(callback.get("class_path", "")).rpartition(".")[2]
