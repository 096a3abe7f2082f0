"""The command line's arguments before they are parsed."""

import itertools
import re
from pathlib import Path
from typing import Any

import yaml

from a2d_lightning.runtime.errors import SettingError


def whole_numbers(args: list[str]) -> list[str]:
    """Write whole numbers like 1e6 in full: YAML files may have them for counts, and so may the command line."""

    def in_full(value: str) -> str:
        is_whole = re.fullmatch(r"\d+(\.\d+)?[eE]\+?\d{1,2}", value) and float(value).is_integer()
        return str(int(float(value))) if is_whole else value

    written, option = [], ""
    for arg in args:
        name, equals, value = arg.partition("=")
        if arg.startswith("--"):
            written.append(name + equals + in_full(value))
        else:
            written.append(in_full(arg) if option.startswith(("--data.", "--model.", "--trainer.")) else arg)
        option = arg
    return written


def check_seed(args: list[str]) -> None:
    """Refuse a seed of the model, which the link to ``seed_everything`` replaces while arguments are parsed."""
    seeds = ("--model.seed", "--model.init_args.seed")
    given = any(arg.partition("=")[0] in seeds for arg in args)
    for option, value in itertools.pairwise(args):
        if option in ("--config", "-c", "--model") and (content := _mapping(value)):
            model = content if option == "--model" else content.get("model")
            init_args = model.get("init_args") if isinstance(model, dict) else None
            given |= isinstance(init_args, dict) and "seed" in init_args
    if given:
        raise SettingError("model.seed: linked; it follows from seed_everything, leave it out.")


def _mapping(value: str) -> dict[str, Any] | None:
    """Return the mapping that a file or an argument in JSON holds."""
    try:
        content = yaml.safe_load(value if value.startswith("{") else Path(value).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) else None
