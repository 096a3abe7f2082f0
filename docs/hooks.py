"""MkDocs hook: tables of settings, made from signatures and docstrings when the documentation is built."""

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

from docstring_parser import parse_from_object

MARKER = re.compile(r"^<!-- settings: (?P<path>[\w.]+) -->$", re.MULTILINE)

LINKED = ("game", "frame_shape", "num_actions", "total_env_steps", "seed")
"""Arguments of LightningModules that the command line takes from the data."""


def settings_table(path: str) -> str:
    """Return a Markdown table of the settings of a class, a row for each argument of its constructor.

    Args:
        path: Class path, ``a2d_lightning.rl.algorithms.PPO``.

    Raises:
        ValueError: If an argument has no description in the docstring of the class or its bases.
    """
    module, _, name = path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    described: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base is not object:
            described |= {each.arg_name: each.description or "" for each in parse_from_object(base).params}
    rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for argument in _arguments(cls):
        if module.startswith("a2d_lightning.modules") and argument.name in LINKED:
            continue
        if argument.name not in described:
            raise ValueError(f"{path}: argument {argument.name!r} has no description")
        meaning = " ".join(described[argument.name].split()).replace("|", "\\|")
        rows.append(f"| `{argument.name}` | {_shown(argument.default)} | {meaning} |")
    return "\n".join(rows)


def _arguments(cls: type) -> Iterator[inspect.Parameter]:
    """Yield the arguments of a constructor, and of those of the bases that it passes ``**kwargs`` to."""
    for base in cls.__mro__:
        if "__init__" not in base.__dict__ or base is object:
            continue
        _, *arguments = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
        passes_on = False
        for argument in arguments:
            if argument.kind is argument.VAR_KEYWORD:
                passes_on = True
            elif argument.kind is not argument.VAR_POSITIONAL:
                yield argument
        if not passes_on:
            return


def _shown(default: Any) -> str:
    """Return a default value as Markdown."""
    if default is inspect.Parameter.empty:
        return "required"
    if callable(default):
        return f"`{getattr(default, '__name__', default)}`"
    if type(default).__module__ not in ("builtins",):
        return f"`{type(default).__name__}`"
    return f"`{default!r}`"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each ``<!-- settings: CLASS_PATH -->`` of a page by the table of its settings."""
    return MARKER.sub(lambda match: settings_table(match["path"]), markdown)
