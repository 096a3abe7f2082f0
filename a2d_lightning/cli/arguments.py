"""Preprocessing and checks of command-line arguments before they are parsed."""

import inspect
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from a2d_lightning.runtime.errors import SettingError

OPERATORS_HELP = "model.operators of the search, if some of its operators are not the paper's (JSON)"
"""Help text of an option of several commands."""


def whole_numbers(args: list[str]) -> list[str]:
    """Expand whole numbers in scientific notation (``1e6`` to ``1000000``), which YAML configs accept for counts.

    Args:
        args: Command-line arguments.

    Returns:
        Arguments with expanded values of ``--name=value`` options and of ``--data.*``, ``--model.*`` and
        ``--trainer.*`` options.
    """

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


def description(command: Callable[..., Any]) -> str:
    """Return the help text of a command: its docstring without the section of errors."""
    return inspect.cleandoc(command.__doc__ or "").partition("\n\nRaises:")[0]


def check_seed(args: list[str]) -> None:
    """Reject a seed given to the model: the link to ``seed_everything`` would overwrite it.

    Args:
        args: Command-line arguments.

    Raises:
        SettingError: If an option or a config sets the model's seed.
    """
    seeds = ("--model.seed", "--model.init_args.seed")
    given = any(arg.partition("=")[0] in seeds for arg in args)
    for option, value in itertools.pairwise(args):
        if option in ("--config", "-c", "--model") and (content := _mapping(value)):
            model = content if option == "--model" else content.get("model")
            init_args = model.get("init_args") if isinstance(model, dict) else None
            given |= isinstance(init_args, dict) and "seed" in init_args
    if given:
        raise SettingError("model.seed: linked to seed_everything; remove it.")


def _mapping(value: str) -> dict[str, Any] | None:
    """Return the mapping in a YAML file or an inline JSON argument; None if there is none."""
    try:
        content = yaml.safe_load(value if value.startswith("{") else Path(value).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) else None
